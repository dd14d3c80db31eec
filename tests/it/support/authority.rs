//! Certificates that a test signs itself.

use std::path::Path;
use std::process::Command;

/// A certificate authority of its own.
pub struct Authority<'a> {
    folder: &'a Path,
    key: String,
    /// The file of its certificate.
    pub certificate: String,
}

impl<'a> Authority<'a> {
    /// Makes one whose files are in `folder`.
    pub fn new(folder: &'a Path) -> Self {
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let (key, certificate) = (path("ca-key.pem"), path("ca.pem"));
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=Authority",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ]);
        Self {
            folder,
            key,
            certificate,
        }
    }

    /// The files of a key and of its certificate, for these names: `DNS:a.example,IP:127.0.0.1`.
    pub fn sign(&self, name: &str, names: &str) -> (String, String) {
        let path = |end: &str| self.folder.join(format!("{name}{end}"));
        let path = |end: &str| path(end).to_str().unwrap().to_owned();
        let (key, request, certificate) = (path("-key.pem"), path(".csr"), path(".pem"));
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &format!("/CN={name}"),
            "-addext",
            &format!("subjectAltName={names}"),
            "-keyout",
            &key,
            "-out",
            &request,
        ]);
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &self.certificate,
            "-CAkey",
            &self.key,
            "-CAcreateserial",
            "-copy_extensions",
            "copy",
            "-days",
            "2",
            "-out",
            &certificate,
        ]);
        (key, certificate)
    }
}

fn openssl(arguments: &[&str]) {
    let done = Command::new("openssl").args(arguments).output();
    let done = done.expect("openssl is installed (make test installs it)");
    assert!(done.status.success(), "{done:?}");
}
