//! What is wrong with a configuration, and the reader that collects it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::values::{duration, size};

/// A setting that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The setting's environment name.
    pub setting: String,
    /// The rule it breaks, as the end of a sentence about it.
    pub rule: String,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        for Fault { setting, rule } in &self.0 {
            write!(f, "\n  {setting} {rule}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Takes values out of settings and keeps the faults.
#[derive(Default)]
pub(super) struct Reader(Vec<Fault>);

impl Reader {
    /// What was read, unless there was a fault.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Faults> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(Faults(self.0))
        }
    }

    #[cfg(test)]
    pub(super) fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    /// Notes a fault of a variable that is not one of `FANFARE_…`.
    pub(super) fn foreign_fault(&mut self, variable: &str, rule: impl Into<String>) {
        self.0.push(Fault {
            setting: variable.to_owned(),
            rule: rule.into(),
        });
    }

    pub(super) fn fault(&mut self, setting: &str, rule: impl Into<String>) {
        self.0.push(Fault {
            setting: format!("FANFARE_{setting}"),
            rule: rule.into(),
        });
    }

    /// The value, or a stand-in and a fault.
    pub(super) fn read<T: Default>(&mut self, setting: &str, value: Result<T, String>) -> T {
        value.unwrap_or_else(|rule| {
            self.fault(setting, rule);
            T::default()
        })
    }

    pub(super) fn address(&mut self, setting: &str, text: &str) -> SocketAddr {
        text.parse().unwrap_or_else(|_| {
            self.fault(
                setting,
                "must be IP:PORT, such as 0.0.0.0:8080 or [::1]:8080",
            );
            SocketAddr::from(([127, 0, 0, 1], 0))
        })
    }

    pub(super) fn duration(
        &mut self,
        setting: &str,
        text: &str,
        within: (Duration, Duration),
    ) -> Duration {
        let value = duration(text).and_then(|value| {
            let (least, most) = within;
            if (least..=most).contains(&value) {
                Ok(value)
            } else {
                Err(format!("must be between {least:?} and {most:?}"))
            }
        });
        self.read(setting, value)
    }

    pub(super) fn size(&mut self, setting: &str, text: &str, within: (usize, usize)) -> usize {
        let value = size(text).and_then(|value| in_range(value, within));
        self.read(setting, value)
    }

    pub(super) fn count(&mut self, setting: &str, text: &str, within: (usize, usize)) -> usize {
        let value = text
            .parse()
            .map_err(|_| "must be a whole number".to_owned())
            .and_then(|value| in_range(value, within));
        self.read(setting, value)
    }
}

fn in_range(value: usize, (least, most): (usize, usize)) -> Result<usize, String> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("must be between {least} and {most}"))
    }
}
