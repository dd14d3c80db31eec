//! Calling the functions of the library, and what their refusals mean.

use redis::{Cmd, RedisError};

/// Why Redis did not run a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// This Redis is a replica; perhaps one that has lost its primary, and says nothing else any more.
    Replica,
    /// It is a node of a cluster.
    ClusterNode,
    /// It does not have the function, or no functions at all.
    Missing,
    /// The user may not call it.
    Forbidden,
    /// An argument breaks a rule, named here.
    Rejected(String),
    /// The channel's key holds something else than a history, or what others have written to it.
    NotAHistory,
    /// The channel has ended, as this says.
    Ended(String),
    /// Something else: no memory, too few replicas, a disk that is full. It may pass. With the
    /// code that Redis says it with: `OOM`, `NOREPLICAS`, `MISCONF`.
    NotNow(String),
}

/// What an answer means, or the first refusal within a transaction; `None` where there was none.
pub(super) fn refusal(error: &RedisError) -> Option<Refusal> {
    let errors = error.clone().into_server_errors()?;
    let (_, error) = errors.first()?;
    let detail = error.details().unwrap_or_default();
    Some(match error.code() {
        "READONLY" | "MASTERDOWN" => Refusal::Replica,
        "MOVED" | "ASK" | "TRYAGAIN" | "CROSSSLOT" | "CLUSTERDOWN" => Refusal::ClusterNode,
        "NOPERM" => Refusal::Forbidden,
        "WRONGTYPE" => Refusal::NotAHistory,
        "ENDED" => {
            let reason = detail.rsplit(' ').next().unwrap_or_default();
            Refusal::Ended(reason.to_owned())
        }
        "ERR" => match broken_rule(detail) {
            Some(rule) => Refusal::Rejected(rule.to_owned()),
            None if detail.starts_with("Function not found")
                || detail.starts_with("unknown command") =>
            {
                Refusal::Missing
            }
            // As Redis 7.0 says it of a command within a function.
            None if detail.starts_with("The user executing the script can't") => Refusal::Forbidden,
            None => Refusal::NotNow("ERR".to_owned()),
        },
        code => Refusal::NotNow(code.to_owned()),
    })
}

/// The rule in the refusal of a function that publishers call.
fn broken_rule(detail: &str) -> Option<&str> {
    let rule = |function| detail.strip_prefix(function);
    rule("fanfare_publish: ").or_else(|| rule("fanfare_revoke: "))
}

/// A call of a function that writes, on `key`.
pub(super) fn call(function: &str, key: &str) -> Cmd {
    let mut command = redis::cmd("FCALL");
    command.arg(function).arg(1).arg(key);
    command
}

/// A call of a function that only reads.
pub(super) fn call_read_only(function: &str, key: &str) -> Cmd {
    let mut command = redis::cmd("FCALL_RO");
    command.arg(function).arg(1).arg(key);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let error = |text: &str| {
            let value = redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap();
            value.extract_error().unwrap_err()
        };
        let not_now = |code: &str| Refusal::NotNow(code.to_owned());
        for (text, expected) in [
            ("ERR Function not found", Refusal::Missing),
            ("ERR unknown command 'FCALL', with args", Refusal::Missing),
            ("NOPERM User x has no permissions", Refusal::Forbidden),
            (
                "ERR The user executing the script can't run this command or subcommand script: f",
                Refusal::Forbidden,
            ),
            ("READONLY You can't write", Refusal::Replica),
            ("MASTERDOWN Link with MASTER is down", Refusal::Replica),
            ("MOVED 3999 127.0.0.1:6381", Refusal::ClusterNode),
            ("CLUSTERDOWN Hash slot not served", Refusal::ClusterNode),
            ("OOM command not allowed", not_now("OOM")),
            ("NOREPLICAS Not enough good replicas", not_now("NOREPLICAS")),
            ("MISCONF Redis is configured", not_now("MISCONF")),
            ("ERR out of something", not_now("ERR")),
            ("WRONGTYPE Operation against", Refusal::NotAHistory),
            (
                "ENDED fanfare_publish: the channel has ended: done",
                Refusal::Ended("done".into()),
            ),
            (
                "ERR fanfare_publish: key: has 1 to 256 bytes",
                Refusal::Rejected("key: has 1 to 256 bytes".into()),
            ),
            (
                "ERR fanfare_revoke: exp: is a time to come",
                Refusal::Rejected("exp: is a time to come".into()),
            ),
            (
                "ERR there are 100000 revocations",
                Refusal::NotNow("ERR".into()),
            ),
        ] {
            assert_eq!(refusal(&error(text)), Some(expected), "{text}");
        }
        let lost = RedisError::from(std::io::Error::other("gone"));
        assert_eq!(refusal(&lost), None);
    }
}
