//! The command line and the start: what is wrong is told, all of it, before anything starts.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::{DEADLINE, Gateway, Process, Redis, test_within, within};
use tokio::io::AsyncWriteExt;
use tokio::task::{JoinHandle, spawn_blocking};

fn fanfare(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

async fn command(arguments: Vec<String>, variables: Vec<(&'static str, String)>) -> Output {
    command_within(DEADLINE, arguments, variables).await
}

async fn command_within(
    deadline: Duration,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    command.args(arguments).envs(variables);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // Killed when the test ends early: it must not wait for the pipes.
    let mut process = Process(command.spawn().unwrap());
    let stdout = read(process.0.stdout.take().unwrap());
    let stderr = read(process.0.stderr.take().unwrap());
    let output = async { (stdout.await.unwrap(), stderr.await.unwrap()) };
    let (stdout, stderr) = test_within(deadline, output).await;
    let status = process.0.wait().unwrap();
    Output {
        status,
        stdout,
        stderr,
    }
}

fn read(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    spawn_blocking(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_wrong_configuration_is_refused_with_every_fault() {
    let output = fanfare(
        &["--heartbeat", "15"],
        &[
            ("FANFARE_LISTEN", "0.0.0.0:0"),
            ("FANFARE_RETRIES", "3"),
            ("FANFARE_MAX_EVENT_BYTES", "huge"),
        ],
    );
    assert!(!output.status.success());
    for setting in [
        "FANFARE_HEARTBEAT",
        "FANFARE_RETRIES",
        "FANFARE_MAX_EVENT_BYTES",
        "FANFARE_PUBLIC_CHANNELS",
        "FANFARE_REDIS_URL",
    ] {
        assert!(stderr(&output).contains(setting), "{}", stderr(&output));
    }
}

#[test]
fn unknown_flags_are_refused() {
    let output = fanfare(&["--heartbead", "15s"], &[]);
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("--heartbeat"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn check_tells_what_the_configuration_comes_to() {
    let secret = ("FANFARE_REDIS_URL", "redis://user:canary@127.0.0.1:6379");
    let output = fanfare(&["check"], &[secret]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\nFANFARE_HEARTBEAT=15s\n"), "{text}");
    assert!(!text.contains("canary"), "{text}");
    let output = fanfare(&["check"], &[("FANFARE_HEARTBEAT", "never")]);
    assert!(!output.status.success());
}

#[tokio::test]
async fn an_address_in_use_is_told_even_though_shards_share_theirs() {
    let gateway = Gateway::start(&[]).await;
    for (flag, address, setting) in [
        ("--listen", gateway.data, "FANFARE_LISTEN"),
        ("--admin-listen", gateway.admin, "FANFARE_ADMIN_LISTEN"),
    ] {
        let output = command(
            vec![flag.into(), address.to_string()],
            vec![
                ("FANFARE_SHARDS", "2".into()),
                if flag == "--listen" {
                    ("FANFARE_ADMIN_LISTEN", "127.0.0.1:0".into())
                } else {
                    ("FANFARE_LISTEN", "127.0.0.1:0".into())
                },
            ],
        )
        .await;
        assert!(!output.status.success());
        assert!(stderr(&output).contains(setting), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn tail_exits_when_its_channels_have_ended() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let url = format!("http://{}", gateway.data);
    let run = async |arguments: &[&str], variables| {
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        within("the command", command(arguments, variables)).await
    };
    let over_redis = || vec![("FANFARE_REDIS_URL", redis.url())];
    for (channel, data, reason, code) in [
        ("run.1", "x", "done", 0),
        ("run.2", "", "stopped", 3),
        ("run.3", "x", "error", 4),
    ] {
        let mut publish = vec!["publish", channel, data, "--end", reason];
        let variables = match code {
            0 => {
                publish.extend(["--url", &url]);
                vec![]
            }
            _ => over_redis(),
        };
        let output = run(&publish, variables).await;
        assert!(output.status.success(), "{}", stderr(&output));
        let id = String::from_utf8(output.stdout).unwrap();
        let tail = ["tail", channel, "--from", "start", "--url", &url];
        let output = run(&tail, vec![]).await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains(&format!("\t$end\t{{\"channel\":\"{channel}\"")),
            "{text}"
        );
        // Who comes back gets 204.
        let tail = ["tail", channel, "--after", id.trim(), "--url", &url];
        let output = run(&tail, vec![]).await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    let output = run(&["publish", "run.1", "y"], over_redis()).await;
    assert!(
        stderr(&output).contains("the channel has ended: done"),
        "{}",
        stderr(&output)
    );
    let output = run(&["publish", "run.9", "y", "--end", "lost"], vec![]).await;
    assert!(stderr(&output).contains("done, error or stopped"));
}

#[tokio::test]
async fn publish_and_tail_speak_to_a_gateway_and_to_redis() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let url = format!("http://{}", gateway.data);
    let tail = tokio::spawn(command(
        ["tail", "a", "b", "--count", "3", "--url", &url]
            .map(str::to_owned)
            .to_vec(),
        vec![],
    ));
    crate::support::eventually("tail has opened its stream", async || {
        gateway.metric("fanfare_subscriptions").await == 2.0
    })
    .await;
    let over_redis = ("FANFARE_REDIS_URL", redis.url());
    for (arguments, variables) in [
        (
            vec!["publish", "a", "one", "--live"],
            vec![over_redis.clone()],
        ),
        (
            vec!["publish", "b", "two\nlines", "--event", "n", "--live"],
            vec![over_redis],
        ),
        (
            vec![
                "publish",
                "a",
                "three \u{1b}[31m",
                "--url",
                &url,
                "--retry",
                "5s",
                "--live",
            ],
            vec![],
        ),
    ] {
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let output = command(arguments, variables).await;
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(output.stdout.is_empty(), "a live event has no id");
    }
    let output = within("tail ends", tail).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        text,
        "-\tmessage\tone\n-\tn\ttwo\\nlines\n-\tmessage\tthree \\u{1b}[31m\n"
    );
}

/// Over both ways: kept, with its id printed, once a key.
#[tokio::test]
async fn publish_keeps_and_prints_the_id() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    let url = format!("http://{}", gateway.data);
    let mut ids = Vec::new();
    for (arguments, variables) in [
        (vec!["--key", "k"], vec![("FANFARE_REDIS_URL", redis.url())]),
        (vec!["--key", "k", "--url", &url], vec![]),
        (vec!["--history", "3", "--url", &url], vec![]),
        (vec!["--key", "k"], vec![("FANFARE_URL", url.clone())]),
    ] {
        let all = [&["publish", "a", "x"], &arguments[..]].concat();
        let output = command(all.into_iter().map(str::to_owned).collect(), variables).await;
        assert!(output.status.success(), "{}", stderr(&output));
        ids.push(String::from_utf8(output.stdout).unwrap().trim().to_owned());
    }
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[0], ids[3]);
    for id in [&ids[0], &ids[2]] {
        assert_eq!(events.event().await.id.as_ref(), Some(id));
    }
}

/// Whoever names a gateway means it, whatever Redis the environment of the shell has.
#[tokio::test]
async fn publish_goes_where_its_arguments_say() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let mut events = gateway.events("/events/a").await.opened().await;
    let dead = "http://127.0.0.1:1";
    let of_shell = [
        ("FANFARE_REDIS_URL", redis.url()),
        ("FANFARE_URL", dead.to_owned()),
    ];
    let publish = async |data: &str, arguments: &[&str]| {
        let all = [&["publish", "a", data], arguments].concat();
        command(
            all.into_iter().map(str::to_owned).collect(),
            of_shell.to_vec(),
        )
        .await
    };
    let output = publish("nowhere", &["--url", dead]).await;
    assert!(!output.status.success());
    let told = stderr(&output);
    let tried = "fanfare: cannot publish over HTTP to http://127.0.0.1:1: ";
    assert!(told.starts_with(tried), "{told}");
    assert!(told.contains("refused"), "{told}");
    let both = ["--url", &gateway.url(""), "--redis-url", &redis.url()];
    let output = publish("nowhere", &both).await;
    assert!(!output.status.success());
    assert!(stderr(&output).contains("exclude"), "{}", stderr(&output));
    // The events that did get through are all that there are.
    for (data, arguments) in [("one", &both[..2]), ("two", &both[2..]), ("three", &[])] {
        let output = publish(data, arguments).await;
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(events.data().await, data);
    }
}

#[tokio::test]
async fn publish_hands_the_trace_on_both_ways() {
    let redis = Redis::start().await;
    let gateway = Gateway::behind(&redis, &[]).await;
    let over_redis = ("FANFARE_REDIS_URL", redis.url());
    let over_http = ("FANFARE_URL", gateway.url(""));
    for (span, way) in [
        ("0000000000000001", over_redis),
        ("0000000000000002", over_http),
    ] {
        let parent = format!("00-0af7651916cd43dd8448eb211c80319c-{span}-01");
        let arguments = ["publish", "a", "x", "--traceparent", &parent];
        let output = command(arguments.map(str::to_owned).to_vec(), vec![way]).await;
        assert!(output.status.success(), "{}", stderr(&output));
        let newest: Vec<(String, Vec<Vec<u8>>)> = redis
            .command(&["XREVRANGE", "sse:a", "+", "-", "COUNT", "1"])
            .await;
        let frame = newest[0].1.concat();
        let frame = String::from_utf8_lossy(&frame);
        assert!(frame.contains(&parent), "{frame}");
    }
}

/// What the examples read is known to every command.
#[tokio::test]
async fn the_variable_of_the_gateway_is_known() {
    let url = (
        "FANFARE_URL",
        "http://user:secret@127.0.0.1:1/sub".to_owned(),
    );
    for arguments in [&["check"][..], &["functions", "print"]] {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let output = command(arguments, vec![url.clone()]).await;
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let read = spawn_blocking(move || {
        let mut tail = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .args(["tail", "a"])
            .envs([url])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut told = std::io::BufReader::new(tail.stderr.take().unwrap());
        let read = std::io::BufRead::read_line(&mut told, &mut line);
        tail.kill().unwrap();
        tail.wait().unwrap();
        read.map(|_| line)
    });
    let line = within("tail tells", read).await.unwrap().unwrap();
    assert!(line.starts_with("fanfare: http://127.0.0.1:1: "), "{line}");
    assert!(
        line.contains("refused") && !line.contains("secret"),
        "{line}"
    );
}

#[test]
fn a_history_that_quiet_clients_outlive_is_told() {
    let times = [
        ("FANFARE_HISTORY_TTL", "70s"),
        ("FANFARE_MAX_REPLICATION_LAG", "60s"),
    ];
    let output = fanfare(&["check"], &times);
    assert!(output.status.success());
    assert!(
        stderr(&output).contains("FANFARE_HISTORY_TTL is 1m 10s"),
        "{}",
        stderr(&output)
    );
    assert_eq!(stderr(&fanfare(&["check"], &[])), "");
}

#[tokio::test]
async fn publish_tells_why_it_was_refused() {
    for arguments in [
        vec!["publish", "no/channel", "x"],
        vec!["publish", "a", "x", "--event", "a\nb"],
        vec!["publish", "a", "x", "--url", "http://127.0.0.1:1"],
        vec!["publish", "a", "x", "--redis-url", "redis://127.0.0.1:1"],
        vec!["publish", "a", "x", "--live", "--key", "k"],
        vec!["publish", "a", "x", "--history", "0"],
        vec!["publish", "a", "x", "--traceparent", "01"],
        vec!["tail", "a b"],
        vec!["tail", "a", "--history", "some"],
        vec!["tail", "a", "--history", "1", "--after", "1-0"],
    ] {
        let output = command(arguments.iter().map(ToString::to_string).collect(), vec![]).await;
        assert!(!output.status.success(), "{arguments:?}");
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn publish_says_what_it_tried() {
    let nowhere = "http://127.0.0.1:1";
    let tried = format!("fanfare: cannot publish over HTTP to {nowhere}: ");
    let named = stderr_of(&["publish", "a", "x", "--url", nowhere]);
    assert!(named.starts_with(&tried), "{named}");
    assert!(!named.contains("FANFARE_REDIS_URL"), "{named}");
    // Nothing listens there, unless this machine has a gateway.
    if std::net::TcpListener::bind("127.0.0.1:8080").is_ok() {
        let by_default = stderr_of(&["publish", "a", "x"]);
        let hint = "; FANFARE_REDIS_URL is not set, so Redis was not tried\n";
        assert!(by_default.ends_with(hint), "{by_default}");
    }
}

fn stderr_of(arguments: &[&str]) -> String {
    let output = fanfare(arguments, &[]);
    assert!(!output.status.success(), "{arguments:?}");
    stderr(&output).to_owned()
}

#[test]
fn publish_names_the_argument_that_is_wrong() {
    for (argument, value, rule) in [
        ("--to", "{bad", "--to must be a JSON object"),
        (
            "--retry",
            "2d",
            "--retry must be a duration such as 5s, at most a day",
        ),
    ] {
        let output = fanfare(&["publish", "a", "x", argument, value], &[]);
        assert!(!output.status.success(), "{argument}");
        assert_eq!(stderr(&output), format!("fanfare: {rule}\n"));
    }
}

#[test]
fn an_empty_file_is_told_by_its_variable() {
    let output = fanfare(&["check"], &[("FANFARE_REDIS_URL_FILE", "/dev/null")]);
    assert!(!output.status.success());
    let told = stderr(&output);
    assert!(told.contains("FANFARE_REDIS_URL_FILE is empty"), "{told}");
}

#[test]
fn tail_refuses_what_is_no_cursor() {
    for text in ["", "x", "5-1.4-0", "5"] {
        let output = fanfare(&["tail", "a", "--after", text], &[]);
        assert!(!output.status.success(), "{text:?}");
        let rule = "a cursor must be <id> or <id>.<later id>";
        assert!(stderr(&output).contains(rule), "{}", stderr(&output));
    }
}

/// Against a server that says exactly what is to be understood.
#[tokio::test]
async fn tail_keeps_its_cursor_and_tells_of_gaps() {
    let answers = [
        (
            "\r\nlast-event-id: 1-0\r\n",
            "retry: 10\nevent: $cursor\nid: 1-0\ndata: {}\n\nid: 6-0\ndata: one\n\n\
             event: $cursor\nid: 6-0.9-0\ndata: {}\n\nid: 99-0\ndata: cut",
        ),
        // Full, or draining: it only says when to come back.
        (
            "\r\nlast-event-id: 6-0.9-0\r\n",
            "retry: 20\nevent: $busy\ndata: {}\n\n",
        ),
        // The same from an older gateway.
        ("\r\nlast-event-id: 6-0.9-0\r\n", "retry: 30\n\n"),
        (
            "\r\nlast-event-id: 6-0.9-0\r\n",
            "retry: 10\nevent: $cursor\ndata: {}\n\nid: 11-9\nevent: $gap\ndata: {\"channel\":\"a\",\"reason\":\"expired\",\
             \"after\":\"9-0\",\"oldest\":\"12-0\"}\n\nid: 12-0\ndata: two\n\n\
             event: $cursor\nid: 12-0.13-0\ndata: {}\n\ndata: live\n\n",
        ),
    ];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tail = ["tail", "a", "--after", "1-0", "--count", "3", "--url", &url];
    let tail = tokio::spawn(command(tail.map(str::to_owned).to_vec(), vec![]));
    for (expected, answer) in answers {
        let (mut socket, _) = within("tail connects", listener.accept()).await.unwrap();
        let head = crate::support::read_until(&mut socket, &mut Vec::new(), "\r\n\r\n").await;
        assert!(head.contains(expected), "{head}");
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(answer.as_bytes()).await.unwrap();
    }
    let output = within("tail ends", tail).await.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "6-0\tmessage\tone\n\
         11-9\t$gap\t{\"channel\":\"a\",\"reason\":\"expired\",\"after\":\"9-0\",\"oldest\":\"12-0\"}\n\
         12-0\tmessage\ttwo\n\
         -\tmessage\tlive\n"
    );
    assert_eq!(
        stderr(&output),
        format!(
            "fanfare: {url}: the stream ended; again in 10ms\n\
             fanfare: the gateway cannot open the stream now\n\
             fanfare: {url}: the stream ended; again in 20ms\n\
             fanfare: {url}: the stream ended; again in 30ms\n\
             fanfare: connected again, resuming after 6-0.9-0\n\
             fanfare: gap: events of a may be missing after 9-0 (expired)\n"
        )
    );
}

#[tokio::test]
async fn tail_begins_after_a_cursor_or_with_the_newest() {
    let gateway = Gateway::start(&[]).await;
    let url = gateway.url("");
    let mut ids = Vec::new();
    for data in ["one", "two", "three"] {
        ids.push(gateway.keep("/events/a", data).await);
    }
    let tail = async |arguments: &[&str]| {
        let mut all = vec!["tail", "a", "--url", &url];
        all.extend_from_slice(arguments);
        let output = command(all.into_iter().map(str::to_owned).collect(), vec![]).await;
        assert!(output.status.success(), "{}", stderr(&output));
        (
            String::from_utf8(output.stdout.clone()).unwrap(),
            stderr(&output).to_owned(),
        )
    };
    let [one, two, three] = &ids[..] else {
        panic!("three were published");
    };
    let newest = format!("{two}\tmessage\ttwo\n{three}\tmessage\tthree\n");
    for arguments in [["--history", "2"], ["--after", one]] {
        let (out, err) = tail(&[&arguments[..], &["--count", "2"]].concat()).await;
        assert_eq!((out, err.as_str()), (newest.clone(), ""));
    }
    // From before the first id that was ever issued here.
    let (out, err) = tail(&["--after", "1-0", "--count", "3"]).await;
    let (gap, rest) = out.split_once('\n').unwrap();
    assert!(gap.contains("\t$gap\t{"), "{gap}");
    assert_eq!(rest, format!("{one}\tmessage\tone\n{newest}"));
    let told = "fanfare: gap: events of a may be missing after 1-0 (rewound)\n";
    assert_eq!(err, told);
}

#[tokio::test]
async fn tail_resumes_after_a_restart_of_the_gateway() {
    let redis = Redis::start().await;
    let retry = ("FANFARE_RETRY", "100ms,100ms");
    let mut gateway = Gateway::behind(&redis, &[retry]).await;
    let address = gateway.data.to_string();
    let arguments = ["tail", "a", "--count", "3", "--url", &gateway.url("")];
    let arguments = arguments.map(str::to_owned).to_vec();
    // If it comes back before the process has ended, a busy answer tells it to wait for up to 30 s.
    let tail = tokio::spawn(command_within(DEADLINE * 3, arguments, vec![]));
    crate::support::eventually("tail has opened its stream", async || {
        gateway.metric("fanfare_subscriptions").await == 1.0
    })
    .await;
    let one = redis.keep("a", "one", &[]).await;
    crate::support::eventually("the first event is delivered", async || {
        gateway.metric("fanfare_events_delivered_total").await == 1.0
    })
    .await;
    gateway.process.signal("TERM");
    assert!(gateway.process.ended().await);
    let two = redis.keep("a", "two", &[]).await;
    let three = redis.keep("a", "three", &[]).await;
    let _gateway = Gateway::behind(&redis, &[retry, ("FANFARE_LISTEN", &address)]).await;
    let output = tail.await.unwrap();
    let expected = format!("{one}\tmessage\tone\n{two}\tmessage\ttwo\n{three}\tmessage\tthree\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    let told = format!("fanfare: connected again, resuming after {one}\n");
    assert!(stderr(&output).ends_with(&told), "{}", stderr(&output));
}

/// Behind a listener that is not open, only public channels are read and nothing is published.
#[tokio::test]
async fn a_listener_with_public_channels_keeps_to_them() {
    let gateway = Gateway::start(&[("FANFARE_PUBLIC_CHANNELS", "news.*,alerts")]).await;
    gateway
        .events("/events?channel=news.eu&channel=alerts")
        .await
        .opened()
        .await;
    let (status, body) = gateway.get("/events?channel=alerts&channel=orders").await;
    assert_eq!(status, 403);
    assert!(body.contains("orders"), "{body}");
    assert_eq!(gateway.post("/events/alerts", "x").await.0, 403);
}

#[tokio::test]
async fn health_asks_the_gateway_of_this_machine() {
    let health = async |admin: String, more: &[&str]| {
        let mut arguments = vec!["health".to_owned()];
        arguments.extend(more.iter().map(|&more| more.to_owned()));
        // Nor are there certificates of authorities.
        let variables = [
            ("FANFARE_ADMIN_LISTEN", admin.as_str()),
            ("http_proxy", "http://127.0.0.1:1"),
            ("SSL_CERT_FILE", "/dev/null"),
            ("SSL_CERT_DIR", "/nonexistent"),
        ];
        let variables = variables.map(|(name, value)| (name, value.to_owned()));
        command(arguments, variables.to_vec()).await
    };
    // As a container listens, and with a proxy that must not be asked.
    let all = ("FANFARE_ADMIN_LISTEN", "0.0.0.0:0");
    let mut gateway = Gateway::start(&[all]).await;
    let admin = format!("0.0.0.0:{}", gateway.admin.port());
    let well = health(admin.clone(), &[]).await;
    assert!(well.status.success(), "{}", stderr(&well));
    assert!(well.stdout.starts_with(b"{\"ready\":true"));

    let dead = ("FANFARE_REDIS_URL", "redis://127.0.0.1:1");
    let without_redis = Gateway::start_unready(&[dead]).await;
    let address = without_redis.admin.to_string();
    let unready = health(address.clone(), &[]).await;
    assert!(!unready.status.success());
    assert!(stderr(&unready).contains("redis"), "{}", stderr(&unready));
    assert!(health(address, &["--live"]).await.status.success());

    gateway.process.signal("KILL");
    gateway.process.ended().await;
    let gone = health(admin, &["--live"]).await;
    assert!(!gone.status.success());
    for told in ["does not answer", "refused"] {
        assert!(stderr(&gone).contains(told), "{}", stderr(&gone));
    }
}

#[test]
fn packagers_get_completions_and_manual_pages_of_every_command() {
    let help = String::from_utf8(fanfare(&["--help"], &[]).stdout).unwrap();
    for command in ["completions", "man"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = fanfare(&["completions", shell], &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("drain-period"), "{shell}: {script}");
    }
    let folder = tempfile::tempdir().unwrap();
    let output = fanfare(&["man", folder.path().to_str().unwrap()], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let page = std::fs::read_to_string(folder.path().join("fanfare.1")).unwrap();
    assert!(page.contains("FANFARE_DRAIN_PERIOD"), "{page}");
    for command in ["publish", "tail", "check", "health"] {
        assert!(folder.path().join(format!("fanfare-{command}.1")).exists());
    }
}

#[test]
fn the_version_is_told() {
    let output = fanfare(&["--version"], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    // With the commit in parentheses, where the build was given one.
    assert!(
        text.starts_with(concat!("fanfare ", env!("CARGO_PKG_VERSION"))),
        "{text}"
    );
}
