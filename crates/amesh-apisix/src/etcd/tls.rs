//! TLS to clients.

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is wrong with TLS files.
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
    /// The provider and the versions do not fit.
    #[error("{0}")]
    Versions(rustls::Error),
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |reason: String| TlsError::File { path: path.to_owned(), reason };
    let pem = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(all) if all.is_empty() => Err(fail("there is no certificate in it".to_owned())),
        Ok(all) => Ok(all),
        Err(e) => Err(fail(e.to_string())),
    }
}

/// What a listener with TLS needs, of PEM files: its certificate chain and the key, and, where clients have to show a
/// certificate, the roots that may have signed it.
///
/// # Errors
/// A file that cannot be used.
pub fn acceptor(certificate: &Path, key: &Path, client_roots: Option<&Path>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?;
    let builder = match client_roots {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let fail = |reason: String| TlsError::File { path: path.to_owned(), reason };
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                roots.add(root).map_err(|e| fail(e.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|e| fail(e.to_string()))?)
        }
    };
    let fail = |reason: String| TlsError::File { path: key.to_owned(), reason };
    let pem = std::fs::read(key).map_err(|e| fail(e.to_string()))?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| fail(e.to_string()))?;
    let pair = |reason: rustls::Error| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        reason: reason.to_string(),
    };
    let mut config = builder.with_single_cert(certificates(certificate)?, private).map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
