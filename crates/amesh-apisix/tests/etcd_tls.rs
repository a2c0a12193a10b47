//! TLS, with and without certificates of clients.

mod support;

use amesh_apisix::etcd::{acceptor, Address, Config, Listen};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// `ca.pem`, and of `server` and `client` the certificates and keys.
fn pki(dir: &Path) {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    std::fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let of = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), of.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn client(dir: &Path, with_certificate: bool) -> tokio_rustls::TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = if with_certificate {
        let chain = vec![CertificateDer::from_pem_file(dir.join("client.pem")).unwrap()];
        builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(dir.join("client.key")).unwrap()).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

/// What `/version` answers.
async fn ask(address: std::net::SocketAddr, connector: tokio_rustls::TlsConnector) -> std::io::Result<String> {
    let tcp = tokio::net::TcpStream::connect(address).await?;
    let mut stream = connector.connect("localhost".try_into().unwrap(), tcp).await?;
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_client_shows_a_certificate_where_one_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    pki(dir.path());
    let file = |name: &str| -> PathBuf { dir.path().join(name) };
    let address = free_address();
    let with = |roots: Option<&Path>| {
        let tls = Some(acceptor(&file("server.pem"), &file("server.key"), roots).unwrap());
        let listen = vec![Listen { address: Address::Tcp(address), credentials: None, tls }];
        Config { prefix: "/apisix".to_owned(), listen }
    };
    let (mut face, _) = new_face();
    face.configure(with(None));
    face.replace(&[], true);
    drop(Raw::connect(address).await);
    let answer = ask(address, client(dir.path(), false)).await.unwrap();
    assert!(answer.contains("\"etcdserver\":\"3.4.0\""), "{answer}");
    // As after a reload: the next connection is asked.
    face.configure(with(Some(&file("ca.pem"))));
    assert!(ask(address, client(dir.path(), false)).await.is_err());
    assert!(ask(address, client(dir.path(), true)).await.unwrap().contains("3.4.0"));
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    pki(dir.path());
    let file = |name: &str| dir.path().join(name);
    let fail = |c: &str, k: &str, r: Option<&str>| {
        let roots = r.map(file);
        acceptor(&file(c), &file(k), roots.as_deref()).unwrap_err().to_string()
    };
    assert!(fail("none.pem", "server.key", None).contains("none.pem: No such file"));
    assert!(fail("server.key", "server.key", None).contains("server.key: there is no certificate"));
    assert!(fail("server.pem", "ca.pem", None).contains("ca.pem: "));
    assert!(fail("server.pem", "client.key", None).contains("client.key: "));
    assert!(fail("server.pem", "server.key", Some("server.key")).contains("server.key: there is no certificate"));
}
