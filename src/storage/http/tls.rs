//! Trusted authorities, and the client certificate of this host. TLS is implemented by the distribution's OpenSSL,
//! which gets security updates; the trusted authorities are the distribution's, too.

use super::error::{CertificateFlaw, Error, Result};
use super::http_context::HttpContext;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsProvider, parse_pem};
use zeroize::Zeroizing;

/// Returns the TLS configuration.
pub(super) fn tls_config(context: &HttpContext) -> Result<TlsConfig> {
    let roots = match &context.ca_file {
        None => RootCerts::PlatformVerifier,
        Some(path) => {
            let (certificates, _) = read_pem(path)?;
            if certificates.is_empty() {
                return Err(Error::BadFile { path: path.clone(), reason: "it contains no certificate".to_owned() });
            }
            RootCerts::Specific(Arc::new(certificates))
        }
    };
    let client = context.client_certificate.as_deref().map(client_certificate).transpose()?;
    Ok(TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(roots).client_cert(client).build())
}

fn client_certificate(path: &Path) -> Result<ClientCert> {
    let (certificates, key) = read_pem(path)?;
    let bad = |reason: &str| Error::BadFile { path: path.to_owned(), reason: reason.to_owned() };
    let key = key.ok_or_else(|| bad("it contains no private key"))?;
    if certificates.is_empty() {
        return Err(bad("it contains no certificate"));
    }
    Ok(ClientCert::new_with_certs(&certificates, key))
}

fn read_pem(path: &Path) -> Result<(Vec<Certificate<'static>>, Option<PrivateKey<'static>>)> {
    let text = fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    let text = Zeroizing::new(text);
    let (mut certificates, mut key) = (Vec::new(), None);
    for item in parse_pem(&text) {
        match item.map_err(|error| Error::BadFile { path: path.to_owned(), reason: error.to_string() })? {
            PemItem::Certificate(certificate) => certificates.push(certificate),
            PemItem::PrivateKey(found) => key = Some(found),
            _ => {}
        }
    }
    Ok((certificates, key))
}

/// Interprets OpenSSL's error text, which is all the information there is.
pub(super) fn explain(server: &str, words: &str) -> Error {
    let server = server.to_owned();
    if words.contains("certificate verify failed") {
        // `…:certificate verify failed:../ssl/…:1889: (self-signed certificate)`
        let reason = words.rsplit_once('(').map_or(words, |(_, reason)| reason.trim_end_matches(')'));
        return Error::Certificate { server, reason: reason.to_owned(), flaw: flaw_of(reason) };
    }
    let reason = words.split(':').filter(|part| part.contains(' ')).find(|part| !part.contains("routines"));
    let reason = reason.unwrap_or(words).trim().to_owned();
    match words.contains("alert") && (words.contains("certificate") || words.contains("unknown ca")) {
        true => Error::ClientCertificate { server, reason },
        false => Error::Tls { server, reason },
    }
}

/// Interprets OpenSSL's text for the result of a verification (`X509_verify_cert_error_string`).
fn flaw_of(reason: &str) -> CertificateFlaw {
    match reason {
        "certificate has expired" | "certificate is not yet valid" => CertificateFlaw::OutOfDate,
        "hostname mismatch" | "IP address mismatch" => CertificateFlaw::OtherName,
        _ => CertificateFlaw::Untrusted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_errors_distinguish_server_and_client_certificates() {
        let ours =
            "error:0A00045C:SSL routines:ssl3_read_bytes:tlsv13 alert certificate required:../ssl/record.c:1586:";
        let theirs = "error:0A000086:SSL routines:tls_post_process_server_certificate:certificate verify failed:\
                      ../ssl/statem/statem_clnt.c:1889: (self-signed certificate)";
        let none = "error:0A00010B:SSL routines:ssl3_get_record:wrong version number:../ssl/record.c:354:";
        let error = explain("host:1", theirs).to_string();
        assert_eq!(error, "the certificate of host:1 cannot be verified: self-signed certificate");
        assert!(matches!(explain("host:1", ours), Error::ClientCertificate { reason, .. }
            if reason == "tlsv13 alert certificate required"));
        assert!(matches!(explain("host:1", none), Error::Tls { reason, .. } if reason == "wrong version number"));
    }
}
