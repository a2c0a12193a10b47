//! TLS to the control plane: rustls, no lock or state is shared with OpenSSL in the same process.

use super::TransportError;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::TlsConnector;

/// TLS of a server. Files are read at every connect, so rotated ones are taken up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Root certificates, PEM: who may have signed the server's certificate.
    pub roots: PathBuf,
    /// The name that the certificate must have, instead of the host.
    pub server_name: Option<String>,
    /// Our own certificate chain and its key, PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What is wrong with TLS files or with the peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key do not fit, or are of a kind that is not supported.
    #[error("{} with key {}: {reason}", certificate.display(), key.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong with them.
        reason: String,
    },
    /// Not a host name.
    #[error("\"{0}\" is no name that a certificate can have; set the server name of the control plane")]
    Name(String),
    /// The provider and the versions do not fit.
    #[error("{0}")]
    Versions(rustls::Error),
    /// The handshake failed; the certificate does not hold, mostly.
    #[error("handshake: {0}")]
    Handshake(std::io::Error),
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |reason: String| TlsError::File { path: path.to_owned(), reason };
    let pem = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(fail("there is no certificate in it".to_owned())),
        Ok(all) => Ok(all),
        Err(e) => Err(fail(e.to_string())),
    }
}

pub(super) fn config(tls: &Tls) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.roots)? {
        roots.add(certificate).map_err(|e| TlsError::File { path: tls.roots.clone(), reason: e.to_string() })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?
        .with_root_certificates(roots);
    let mut config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let fail = |reason: String| TlsError::File { path: key.clone(), reason };
            let pem = std::fs::read(key).map_err(|e| fail(e.to_string()))?;
            let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| fail(e.to_string()))?;
            builder.with_client_auth_cert(certificates(certificate)?, private).map_err(|e| TlsError::Pair {
                certificate: certificate.clone(),
                key: key.clone(),
                reason: e.to_string(),
            })?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

pub(super) async fn handshake(tls: &Tls, host: &str, tcp: TcpStream) -> Result<TlsStream<TcpStream>, TransportError> {
    let name = tls.server_name.as_deref().unwrap_or(host);
    let server_name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
    let connector = TlsConnector::from(Arc::new(config(tls)?));
    Ok(connector.connect(server_name, tcp).await.map_err(TlsError::Handshake)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let roots = dir.path().join("roots.pem");
        let tls = Tls { roots: roots.clone(), server_name: None, client: None };
        assert!(config(&tls).unwrap_err().to_string().contains("roots.pem: No such file"));
        std::fs::write(&roots, "nothing").unwrap();
        assert!(config(&tls).unwrap_err().to_string().contains("roots.pem: there is no certificate"));
    }
}
