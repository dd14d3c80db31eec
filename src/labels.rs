//! Enums whose variants are the values of a metric's label, and counts by them.
//!
//! A reason more is a line more in its enum: the series, at 0 from the start, follows from it.

/// What a metric can be split by: a label's value, or several of different labels.
pub trait Labels: Copy + 'static {
    /// How many combinations of values there are.
    const COUNT: usize;
    /// The labels' names.
    fn names() -> Vec<&'static str>;
    /// Every combination of values.
    fn all() -> Vec<Self>;
    /// The values, in the order of the names.
    fn values(self) -> Vec<&'static str>;
    /// Where it stands among [`all`](Self::all).
    fn place(self) -> usize;
}

impl<A: Labels, B: Labels> Labels for (A, B) {
    const COUNT: usize = A::COUNT * B::COUNT;

    fn names() -> Vec<&'static str> {
        [A::names(), B::names()].concat()
    }

    fn all() -> Vec<Self> {
        let with = |a: A| B::all().into_iter().map(move |b| (a, b));
        A::all().into_iter().flat_map(with).collect()
    }

    fn values(self) -> Vec<&'static str> {
        [self.0.values(), self.1.values()].concat()
    }

    fn place(self) -> usize {
        self.0.place() * B::COUNT + self.1.place()
    }
}

/// Defines an enum of label values: `labels! { "reason": pub enum Reason { Late = "late", } }`.
macro_rules! labels {
    (
        $name:literal:
        $(#[$meta:meta])*
        pub enum $type:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $label:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $type {
            /// How many there are.
            pub const COUNT: usize = [$($label),+].len();

            /// Every one, in the order of their discriminants.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant),+];

            /// What metrics and logs call it.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }

        impl $crate::labels::Labels for $type {
            const COUNT: usize = Self::COUNT;

            fn names() -> Vec<&'static str> {
                vec![$name]
            }

            fn all() -> Vec<Self> {
                Self::ALL.to_vec()
            }

            fn values(self) -> Vec<&'static str> {
                vec![self.label()]
            }

            fn place(self) -> usize {
                self as usize
            }
        }
    };
}

pub(crate) use labels;
