//! A cluster's own authority, which issues its certificates.
use std::{net::IpAddr, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::{Files, Role};

/// Clocks differ: a certificate is valid a little before it was made.
const BEFORE_S: u64 = 300;

#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("{0} is no point in time")]
    Time(u64),
}

/// Certificate and key, PEM.
#[derive(Clone)]
pub struct Issued {
    pub cert: String,
    pub key: String,
}

impl Issued {
    /// Writes both, and the authorities to trust, as [`Files::in_folder`] names them. The key can be read
    /// by this user alone.
    ///
    /// # Errors
    /// Those of the files.
    pub fn write(&self, dir: &Path, authorities: &str) -> std::io::Result<()> {
        use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
        std::fs::create_dir_all(dir)?;
        let files = Files::in_folder(dir);
        for (path, content, mode) in [
            (&files.cert, self.cert.as_str(), 0o644),
            (&files.key, self.key.as_str(), 0o600),
            (&files.ca, authorities, 0o644),
        ] {
            let new = path.with_extension("new");
            let _ = std::fs::remove_file(&new);
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(mode).open(&new)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, path)?;
        }
        Ok(())
    }

    /// As [`Files::in_folder`].
    pub fn files(dir: &Path) -> Files {
        Files::in_folder(dir)
    }
}

/// Whom a certificate is for, and how long it is valid.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    pub name: &'a str,
    /// DNS names, also `*.name`, and IP addresses.
    pub hosts: &'a [String],
    pub role: Role,
    pub not_before_unix_s: u64,
    pub not_after_unix_s: u64,
}

/// An authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub issued: Issued,
}

impl Authority {
    /// A new one. Its name tells it from the one that it replaces.
    ///
    /// # Errors
    /// When the times are none.
    pub fn new(
        name: &str,
        now_unix_s: u64,
        not_after_unix_s: u64,
    ) -> Result<Authority, IssueError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("{name} {now_unix_s}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = at(now_unix_s.saturating_sub(BEFORE_S))?;
        params.not_after = at(not_after_unix_s)?;
        let key = KeyPair::generate()?;
        let cert = params.self_signed(&key)?.pem();
        let issued = Issued { cert, key: key.serialize_pem() };
        Ok(Authority { issuer: Issuer::new(params, key), issued })
    }

    /// One that was made before.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(issued: Issued) -> Result<Authority, IssueError> {
        let key = KeyPair::from_pem(&issued.key)?;
        let issuer = Issuer::from_ca_cert_pem(&issued.cert, key)?;
        Ok(Authority { issuer, issued })
    }

    /// # Errors
    /// When a name is none, or the times.
    pub fn issue(&self, subject: &Subject<'_>) -> Result<Issued, IssueError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(subject.name);
        for host in subject.hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        params.subject_alt_names.push(SanType::URI(subject.role.uri().try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Only nodes are connected to.
        params.extended_key_usages = match subject.role {
            Role::Node => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Role::Client | Role::Admin => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.not_before = at(subject.not_before_unix_s.saturating_sub(BEFORE_S))?;
        params.not_after = at(subject.not_after_unix_s)?;
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { cert: cert.pem(), key: key.serialize_pem() })
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

fn at(unix_s: u64) -> Result<OffsetDateTime, IssueError> {
    let seconds = i64::try_from(unix_s).ok();
    seconds
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .ok_or(IssueError::Time(unix_s))
}
