use std::collections::BTreeSet;

use super::*;
use crate::config::Access;
use clap::Parser;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    settings: Settings,
}

fn read(flags: &[&str]) -> Result<Config, Faults> {
    Command::parse_from([&["fanfare"], flags].concat())
        .settings
        .read()
}

fn faults(flags: &[&str]) -> Vec<String> {
    let Faults(faults) = read(flags).unwrap_err();
    faults.into_iter().map(|fault| fault.setting).collect()
}

#[test]
fn the_defaults_are_an_open_gateway_on_loopback() {
    let config = read(&[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:9080");
    assert!(matches!(config.bus, BusConfig::Embedded));
    assert!(matches!(config.access, Access::Open));
    assert_eq!(config.heartbeat, Duration::from_secs(15));
    assert_eq!(config.max_event_bytes, 1 << 20);
    assert_eq!(config.history_length, 1000);
    assert_eq!(config.history_ttl, Duration::from_secs(3600));
    assert_eq!(config.max_replication_lag, Duration::from_secs(60));
}

#[test]
fn another_listener_is_told_who_may_read_and_where_its_bus_is() {
    let outside = ["--listen", "0.0.0.0:8080"];
    assert_eq!(
        faults(&outside),
        ["FANFARE_REDIS_URL", "FANFARE_PUBLIC_CHANNELS"]
    );
    let told = [
        &outside[..],
        &[
            "--redis-url",
            "memory:",
            "--public-channels",
            "news.*,alerts",
        ],
    ]
    .concat();
    let Access::Rules(rules) = read(&told).unwrap().access else {
        panic!("it is open");
    };
    let public: Vec<_> = rules.public.iter().map(ToString::to_string).collect();
    assert_eq!(public, ["news.*", "alerts"]);
    assert!(rules.tokens.is_none());
}

/// Every setting wrong once; all are reported together.
#[test]
fn all_faults_are_listed() {
    let found = faults(&[
        "--listen=nowhere",
        "--admin-listen=9080",
        "--redis-url=http://x",
        "--prefix=a*",
        "--shards=0",
        "--heartbeat=15",
        "--retry=6s,2s",
        "--slow-client=wait",
        "--max-connections=0",
        "--max-channels-per-connection=many",
        "--max-event-bytes=1TiB",
        "--history-length=0",
        "--history-ttl=31d",
        "--max-replication-lag=0s",
        "--client-buffer-bytes=1",
        "--socket-send-buffer-bytes=",
        "--drain-delay=2d",
        "--drain-period=-1s",
        "--max-connection-age=never",
        "--public-channels=$all,",
        "--allow-origins=https://*.example.com",
        "--trusted-proxies=everybody",
        "--forwarded-header=via",
        "--proxy-protocol-listen=8443",
        "--max-connections-per-ip=0",
        "--max-connections-per-subject=few",
        "--connect-rate-per-ip=10",
        "--publish-rate-per-subject=1/d",
        "--token-channels=user.{sub}*",
        "--jwt-secret=short",
        "--jwt-secret-file=/nowhere",
        "--jwt-public-key-file=/dev/null",
        "--jwks-url=http://id.example/keys",
        "--jwks-max-age=0s",
        "--jwt-issuer=,",
        "--jwt-audience=",
        "--log=a=b=c",
        "--log-format=xml",
    ]);
    let settings: BTreeSet<_> = found.iter().collect();
    assert_eq!(settings.len(), 38, "{found:?}");
}

#[test]
fn keys_say_who_may_read() {
    let secret = "--jwt-secret=0123456789abcdefghijklmnopqrstuv";
    let outside = ["--listen=0.0.0.0:8080", "--redis-url=memory:", secret];
    let config = read(&outside).unwrap();
    let printed = format!("{config}{config:?}");
    assert!(
        printed.contains("FANFARE_JWT_SECRET=… (HS256)"),
        "{printed}"
    );
    assert!(!printed.contains("0123"), "{printed}");
    let Access::Rules(rules) = config.access else {
        panic!("it is open");
    };
    assert!(rules.public.is_empty() && rules.tokens.is_some());
    // Loopback is not open either, once there is a key.
    assert!(matches!(read(&[secret]).unwrap().access, Access::Rules(_)));
}

#[test]
fn settings_do_not_print_secrets() {
    let command = Command::parse_from([
        "fanfare",
        "--jwt-secret=canary-canary-canary-canary-canary",
        "--redis-url=redis://user:canary@127.0.0.1",
    ]);
    let printed = format!("{:?}", command.settings);
    assert!(!printed.contains("canary"), "{printed}");
}

#[test]
fn what_needs_a_key_is_a_fault_without_one() {
    let found = faults(&[
        "--token-channels=a",
        "--jwt-issuer=me",
        "--jwt-audience=me",
        "--jwks-max-age=1h",
    ]);
    let expected = [
        "TOKEN_CHANNELS",
        "JWT_ISSUER",
        "JWT_AUDIENCE",
        "JWKS_MAX_AGE",
    ];
    assert_eq!(found, expected.map(|name| format!("FANFARE_{name}")));
    for url in [
        "http://10.0.0.1/jwks",
        "https://user:canary@id.example/jwks",
        "ftp://127.0.0.1/jwks",
        "file:///etc/jwks",
        "jwks",
    ] {
        let Faults(told) = read(&[&format!("--jwks-url={url}")]).unwrap_err();
        assert_eq!(told[0].setting, "FANFARE_JWKS_URL");
        assert!(!told[0].rule.contains("canary"), "{}", told[0].rule);
    }
    for url in [
        "https://id.example/jwks?x=1",
        "http://127.0.0.1:1/jwks",
        "http://[::1]/jwks",
    ] {
        assert!(read(&[&format!("--jwks-url={url}")]).is_ok(), "{url}");
    }
}

#[test]
fn contradictions_are_faults() {
    assert_eq!(
        faults(&[
            "--jwt-secret=0123456789abcdefghijklmnopqrstuv",
            "--jwt-secret-file=/dev/null"
        ]),
        ["FANFARE_JWT_SECRET_FILE", "FANFARE_JWT_SECRET_FILE"]
    );
    assert_eq!(
        faults(&["--listen=127.0.0.1:9080"]),
        ["FANFARE_ADMIN_LISTEN"]
    );
    assert_eq!(
        faults(&["--redis-url=memory:", "--redis-url-file=/dev/null"]),
        ["FANFARE_REDIS_URL_FILE"]
    );
    // Where the text stands that is wrong.
    for file in ["/dev/null", "/proc/version"] {
        let flag = format!("--redis-url-file={file}");
        assert_eq!(faults(&[&flag]), ["FANFARE_REDIS_URL_FILE"]);
    }
    assert_eq!(
        faults(&["--history-ttl=30s", "--max-replication-lag=30s"]),
        ["FANFARE_HISTORY_TTL"]
    );
    assert_eq!(
        faults(&["--proxy-protocol-listen=127.0.0.1:8443"]),
        ["FANFARE_PROXY_PROTOCOL_LISTEN"]
    );
    assert_eq!(
        faults(&["--forwarded-header=forwarded"]),
        ["FANFARE_FORWARDED_HEADER"]
    );
    assert_eq!(
        faults(&["--max-connections-per-subject=5"]),
        ["FANFARE_MAX_CONNECTIONS_PER_SUBJECT"]
    );
    let proxied = ["--trusted-proxies=10.0.0.1", "--proxy-protocol-listen"];
    assert_eq!(
        faults(&[&proxied[..], &["127.0.0.1:8080"]].concat()),
        ["FANFARE_PROXY_PROTOCOL_LISTEN"]
    );
    // A listener for proxies is a data listener.
    assert_eq!(
        faults(&[&proxied[..], &["0.0.0.0:8443"]].concat()),
        ["FANFARE_REDIS_URL", "FANFARE_PUBLIC_CHANNELS"]
    );
    let Faults(told) = read(&["--history-ttl=59s"]).unwrap_err();
    assert!(told[0].rule.contains("FANFARE_MAX_REPLICATION_LAG"));
    assert_eq!(
        faults(&["--heartbeat=15s", "--max-connection-age=29s"]),
        ["FANFARE_MAX_CONNECTION_AGE"]
    );
    assert_eq!(
        faults(&["--max-connections=99999999"]),
        ["FANFARE_MAX_CONNECTIONS"]
    );
}
