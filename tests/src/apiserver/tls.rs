//! The server's side of TLS. Like an API server it asks for a client certificate, and also serves
//! clients without one.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::pki;

pub fn config(folder: &Path) -> Result<ServerConfig> {
    let ca = CertificateDer::from_pem_file(folder.join(pki::CA)).context(pki::CA)?;
    let certificate = CertificateDer::from_pem_file(folder.join(pki::SERVER)).context(pki::SERVER)?;
    let key = PrivateKeyDer::from_pem_file(folder.join(pki::SERVER_KEY)).context(pki::SERVER_KEY)?;
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    let clients = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
    let mut config =
        ServerConfig::builder().with_client_cert_verifier(clients).with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
