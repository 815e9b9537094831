//! The certificates that `ca` names.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio_rustls::rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// The certificates in a CA file; an error names the file.
pub fn authorities(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let mut read = || -> Result<()> {
        for certificate in CertificateDer::pem_file_iter(file)? {
            roots.add(certificate?)?;
        }
        ensure!(!roots.is_empty(), "there is no certificate in it");
        Ok(())
    };
    read().with_context(|| file.display().to_string())?;
    Ok(roots)
}
