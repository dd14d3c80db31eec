//! Clients that take their time, by a tool made for it (slowhttptest).

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::hostile::healthy;
use crate::support::{Gateway, Process, eventually_within, test_within};

/// Two hundred connections for ten seconds.
fn slowly(gateway: &Gateway, path: &str, how: &[&str]) -> Process {
    let child = Command::new("slowhttptest")
        .args(["-c", "200", "-r", "100", "-i", "2", "-l", "10", "-p", "5"])
        .args(how)
        .args([
            "-u",
            &format!("http://localhost:{}{path}", gateway.data.port()),
        ])
        .stdout(Stdio::null())
        .spawn()
        .expect("slowhttptest is installed (make test installs it)");
    Process(child)
}

#[tokio::test]
async fn slow_clients_keep_nobody_out() {
    test_within(Duration::from_secs(120), async {
        let gateway = Gateway::start(&[]).await;
        let mut stays = gateway.events("/events/stays").await.opened().await;
        let mut crowds = [
            // Heads that go on and on, bodies that do, and answers that are hardly read.
            slowly(&gateway, "/events/a", &["-H", "-x", "24", "-t", "GET"]),
            slowly(
                &gateway,
                "/events/a",
                &["-B", "-x", "10", "-s", "8192", "-t", "POST"],
            ),
            slowly(
                &gateway,
                "/",
                &[
                    "-X", "-w", "64", "-y", "128", "-n", "1", "-z", "16", "-k", "3",
                ],
            ),
        ];
        let mut served = 0;
        while crowds
            .iter_mut()
            .any(|crowd| crowd.0.try_wait().unwrap().is_none())
        {
            healthy(&gateway).await;
            served += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(served > 10, "{served}");
        gateway.keep("/events/stays", "still here").await;
        assert_eq!(stays.data().await, "still here");
        // Heads that did not come in time were cut, and nothing of the crowd is left.
        eventually_within(Duration::from_secs(60), "the crowd is gone", async || {
            gateway.descriptors() < 60
        })
        .await;
    })
    .await;
}
