//! A real nginx with the files of `nginx/`, in front of gateways.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::{DEADLINE, Events, Gateway, Process, free_port, within};

/// The files as they are in the repository.
pub const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/nginx");

/// A copy of the files, with this place's addresses in `site/`.
pub struct Site {
    folder: tempfile::TempDir,
    /// Where browsers connect.
    pub public: SocketAddr,
    /// The same without TLS, for clients that know none.
    pub plain: SocketAddr,
    /// Where services publish.
    pub inside: SocketAddr,
    certificate: Vec<u8>,
}

impl Site {
    /// With these replicas.
    pub fn of(replicas: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut site = Self {
            public: address(),
            plain: address(),
            inside: address(),
            certificate: Vec::new(),
            folder,
        };
        for part in ["", "site"] {
            std::fs::create_dir_all(site.path(part)).unwrap();
            for entry in std::fs::read_dir(Path::new(FILES).join(part)).unwrap() {
                let entry = entry.unwrap();
                if entry.path().is_file() {
                    let name = Path::new(part).join(entry.file_name());
                    std::fs::copy(entry.path(), site.path(name)).unwrap();
                }
            }
        }
        site.certificate = site.make_certificate();
        let folder = site.folder.path().display();
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
            .concat();
        let machine = format!("access_log {folder}/access.log fanfare;\n{paths}");
        site.write("site/machine.conf", &machine);
        let servers: String = replicas
            .iter()
            .map(|replica| format!("server {replica} max_fails=0;\n"))
            .collect();
        site.write("site/replicas.conf", &servers);
        site.write("site/l4-replicas.conf", &servers);
        let (public, plain, inside) = (site.public, site.plain, site.inside);
        for file in ["site/public.conf", "site/l4-public.conf"] {
            site.edit(file, "listen [::]:443", "#");
            site.edit(file, "listen 443", &format!("listen {public}"));
        }
        let listen = format!("server_name _;\nlisten {plain};");
        site.edit("site/public.conf", "server_name _;", &listen);
        site.edit(
            "site/inside.conf",
            "listen 127.0.0.1:8443",
            &format!("listen {inside}"),
        );
        site
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// A file that can be run.
    pub fn write_program(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        self.write(name, text);
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Replaces what must be there.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from:?}");
        self.write(name, &text.replace(from, to));
    }

    /// With another silence than three heartbeats of the default, and the time in which replicas are
    /// tried in proportion.
    pub fn silence(&self, time: Duration) {
        let all = time * 100 / 45;
        for (name, shipped, time) in [
            ("proxy_read_timeout", "45s", time),
            ("proxy_next_upstream_timeout", "100s", all),
        ] {
            let (from, to) = (
                format!("{name} {shipped}"),
                format!("{name} {}ms", time.as_millis()),
            );
            self.edit("nginx.conf", &from, &to);
        }
    }

    fn make_certificate(&self) -> Vec<u8> {
        std::fs::create_dir_all(self.path("site/tls")).unwrap();
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(self.path("site/tls/tls.key"))
            .arg("-out")
            .arg(self.path("site/tls/tls.crt"))
            .stderr(Stdio::null())
            .status()
            .expect("openssl is installed (make test installs it)");
        assert!(made.success());
        std::fs::read(self.path("site/tls/tls.crt")).unwrap()
    }

    fn command(&self, main: &str) -> Command {
        // Debian's is not on everybody's path.
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("nginx");
        command.env("PATH", format!("{path}:/usr/sbin"));
        command
            .arg("-c")
            .arg(self.path(main))
            .arg("-g")
            .arg(format!(
                "daemon off; pid {};",
                self.path("nginx.pid").display()
            ));
        command
    }

    /// What `nginx -t` says, if it finds a fault.
    pub fn test(&self, main: &str) -> Result<(), String> {
        let output = self.command(main).arg("-t").output().unwrap();
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts nginx with the main file.
    pub async fn start(self) -> Nginx {
        self.start_with("nginx.conf").await
    }

    /// Starts the L4 variant.
    pub async fn start_l4(self) -> Nginx {
        self.start_with("l4.conf").await
    }

    async fn start_with(self, main: &str) -> Nginx {
        let mut nginx = Nginx {
            process: self.spawn(main),
            main: main.to_owned(),
            site: self,
        };
        nginx.listens().await;
        nginx
    }

    fn spawn(&self, main: &str) -> Process {
        let log = std::fs::File::create(self.path("error.log")).unwrap();
        let child = self
            .command(main)
            .stderr(log)
            .spawn()
            .expect("nginx is installed (make test installs it)");
        Process(child)
    }
}

/// A running nginx. Its workers end with it.
pub struct Nginx {
    process: Process,
    main: String,
    pub site: Site,
}

impl Nginx {
    /// In front of these gateways.
    pub async fn before(gateways: &[&Gateway]) -> Self {
        Site::of(&addresses(gateways)).start().await
    }

    async fn listens(&mut self) {
        let end = Instant::now() + DEADLINE;
        while TcpStream::connect(self.site.public).await.is_err() {
            let exited = self.process.0.try_wait().unwrap();
            assert!(exited.is_none(), "nginx has exited: {}", self.log());
            assert!(Instant::now() < end, "nginx does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a signal to its master.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Kills it with SIGKILL, workers included.
    pub async fn kill(&mut self) {
        let master = self.process.0.id();
        let children = format!("/proc/{master}/task/{master}/children");
        let workers = std::fs::read_to_string(children).unwrap();
        self.process.signal("KILL");
        self.process.ended().await;
        for worker in workers.split_whitespace() {
            // One that was told to end may be gone by now.
            let _ = Command::new("kill").args(["-KILL", worker]).status();
        }
    }

    /// Starts it again on the same ports.
    pub async fn restart(&mut self) {
        self.process = self.site.spawn(&self.main);
        self.listens().await;
    }

    /// Its error log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.site.path("error.log")).unwrap()
    }

    /// Its access log: a line for each request that has ended.
    pub fn requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.site.path("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// A client that trusts its certificate, and it alone.
    pub fn client(&self) -> reqwest::ClientBuilder {
        let certificate = reqwest::Certificate::from_pem(&self.site.certificate).unwrap();
        reqwest::Client::builder().tls_certs_only([certificate])
    }

    /// The URL of a path for browsers.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.site.public)
    }

    /// The URL of a path of the inside.
    pub fn inside(&self, path: &str) -> String {
        format!("http://{}{path}", self.site.inside)
    }

    /// The answer to a request of a browser, over HTTP/2.
    pub async fn get(&self, path: &str) -> reqwest::Response {
        let client = self.client().build().unwrap();
        within("nginx answers", client.get(self.url(path)).send())
            .await
            .unwrap()
    }

    /// Opens a stream and returns it when its head has arrived.
    pub async fn events(&self, path: &str) -> Events {
        Events::of(self.get(path).await)
    }

    /// Publishes over HTTP, from the inside; status and body.
    pub async fn post(&self, path: &str, body: &'static str) -> (u16, String) {
        let request = reqwest::Client::new().post(self.inside(path)).body(body);
        let response = within("nginx answers", request.send()).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Workers outlive a master that is killed. Told to end, it kills them itself if it must.
        if matches!(self.process.0.try_wait(), Ok(None)) {
            self.process.signal("TERM");
            let _ = self.process.0.wait();
        }
    }
}

/// The data listeners of gateways.
pub fn addresses(gateways: &[&Gateway]) -> Vec<SocketAddr> {
    gateways.iter().map(|gateway| gateway.data).collect()
}
