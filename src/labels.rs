//! Enums whose variants are the values of a metric's label, and counts by them.
//!
//! To add a reason, add a variant; its time series is exported from start-up with value 0.

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

/// Defines an enum of label values, which are its variants in snake case:
/// `labels! { "reason": pub enum Reason { TooLate, } }`.
macro_rules! labels {
    (
        $name:literal:
        $(#[$meta:meta])*
        pub enum $type:ident $variants:tt
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
        #[strum(serialize_all = "snake_case")]
        pub enum $type $variants

        impl $type {
            /// What metrics and logs call it.
            pub fn label(self) -> &'static str {
                self.into()
            }
        }

        impl $crate::labels::Labels for $type {
            const COUNT: usize = <Self as strum::VariantArray>::VARIANTS.len();

            fn names() -> Vec<&'static str> {
                vec![$name]
            }

            fn all() -> Vec<Self> {
                <Self as strum::VariantArray>::VARIANTS.to_vec()
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
