//! The text of the `--auth` file.
//!
//! It is read field by field, and not by a derived parser, whose errors quote values: an error
//! here names a principal and a field, and nothing else of the file.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

use anyhow::{Context as _, bail};

use super::{OVERFLOW_UID, PrincipalLimits, Rate, Role, spiffe::Pattern, token::Digest};
use crate::domain::{Id, TeamScope};

mod fields;
mod policy;

use fields::Fields;

/// The longest name of a principal or of an issuer.
const MAX_NAME_BYTES: usize = 64;
/// Names that metrics and the audit log use for something else.
const RESERVED_NAMES: [&str; 2] = ["anonymous", "other"];
/// The most credentials of one kind of one principal.
const MAX_CREDENTIALS: usize = 64;
/// The highest number of any limit.
const MAX_LIMIT: u32 = 1_000_000;

/// The file, each field checked on its own.
#[derive(Default)]
pub(super) struct File {
    pub(super) principals: Vec<Entry>,
    pub(super) issuers: BTreeMap<String, IssuerEntry>,
}

/// A `[[principal]]`.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) teams: TeamScope,
    pub(super) limits: PrincipalLimits,
    pub(super) tokens: Vec<Digest>,
    pub(super) spiffe: Vec<Pattern>,
    pub(super) accounts: Vec<AccountEntry>,
    pub(super) uids: Vec<u32>,
}

/// `NS/NAME`, or `ISSUER:NS/NAME`.
pub(super) struct AccountEntry {
    pub(super) issuer: Option<String>,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// A `[jwt.NAME]`.
pub(super) struct IssuerEntry {
    pub(super) url: String,
    pub(super) audience: String,
    pub(super) jwks: PathBuf,
}

pub(super) fn parse(bytes: &[u8]) -> anyhow::Result<File> {
    let text = std::str::from_utf8(bytes).ok().context("the file must be UTF-8")?;
    let table = text.parse::<toml::Table>().map_err(|error| syntax(text, &error))?;
    let mut root = Fields::new("the file", table);
    let mut file = File::default();
    for (at, table) in root.tables("principal")?.into_iter().enumerate() {
        file.principals.push(principal(at + 1, table)?);
    }
    for (name, table) in root.named_tables("jwt")? {
        if !is_name(&name) {
            bail!("jwt: a name must be {NAME_RULE}");
        }
        let entry = issuer(Fields::new(format!("jwt.{name}"), table))?;
        file.issuers.insert(name, entry);
    }
    root.finish()?;
    if file.principals.is_empty() {
        bail!("the file has no [[principal]], so that every call would be refused");
    }
    Ok(file)
}

/// Where the text is no TOML. What the parser says of it may quote the text.
fn syntax(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let problem = if error.message().contains("duplicate key") {
        "a field is given twice"
    } else {
        "the text is not valid TOML"
    };
    anyhow::anyhow!("line {line}: {problem}")
}

fn principal(number: usize, table: toml::Table) -> anyhow::Result<Entry> {
    let mut fields = Fields::new(format!("principal number {number}"), table);
    let name = fields.required("name", Fields::text)?;
    if !is_name(&name) || RESERVED_NAMES.contains(&name.as_str()) {
        let reserved = RESERVED_NAMES.join(" or ");
        return Err(fields.error("name", format!("must be {NAME_RULE}, and not {reserved}")));
    }
    fields.rename(format!("principal {name}"));
    let role = fields.required("role", Fields::text)?;
    let Some(role) = Role::ALL.into_iter().find(|known| known.name() == role) else {
        let names = Role::ALL.map(Role::name).join(", ");
        return Err(fields.error("role", format!("must be one of {names}")));
    };
    let entry = Entry {
        role,
        teams: teams(&mut fields, role)?,
        limits: limits(&mut fields)?,
        tokens: credentials(&mut fields, "token_sha256", HEX_RULE, |text| Digest::from_hex(&text))?,
        spiffe: credentials(&mut fields, "spiffe", SPIFFE_RULE, |text| Pattern::parse(&text))?,
        accounts: credentials(&mut fields, "service_account", ACCOUNT_RULE, |text| account(&text))?,
        uids: uids(&mut fields)?,
        name,
    };
    let Entry { tokens, spiffe, accounts, uids, .. } = &entry;
    if tokens.is_empty() && spiffe.is_empty() && accounts.is_empty() && uids.is_empty() {
        let kinds = "token_sha256, spiffe, service_account or unix_uid";
        return Err(fields.problem(format!("needs a credential: {kinds}")));
    }
    fields.finish()?;
    Ok(entry)
}

const NAME_RULE: &str = "1 to 64 of a-z, A-Z, 0-9, '.', '_', '-', '/', '@'";
const HEX_RULE: &str = "must be the 64 hexadecimal digits of a SHA-256";
const SPIFFE_RULE: &str = "must be spiffe://TRUST-DOMAIN/PATH, or spiffe://TRUST-DOMAIN/PATH/*, \
    in the characters that the SPIFFE standard allows";
const ACCOUNT_RULE: &str = "must be NAMESPACE/NAME, or ISSUER:NAMESPACE/NAME with the name of a \
    [jwt.ISSUER]";

/// Whether a name is fit for a label, and for a line of the audit log.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/@".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

fn teams(fields: &mut Fields, role: Role) -> anyhow::Result<TeamScope> {
    let names = match fields.texts("teams")? {
        Some(names) => names,
        // Health has no team.
        None if role == Role::Probe => return Ok(TeamScope::Only(HashSet::new())),
        None => return Err(fields.error("teams", "is required")),
    };
    if names.is_empty() {
        return Err(fields.error("teams", "must name a team, or be [\"*\"] for all"));
    }
    let is_all = |name: &String| name == "*";
    if names.len() == 1 && names.iter().all(is_all) {
        return Ok(TeamScope::All);
    }
    if names.iter().any(is_all) {
        return Err(fields.error("teams", "must be [\"*\"], or names of teams without \"*\""));
    }
    let mut only = HashSet::new();
    for (at, name) in names.into_iter().enumerate() {
        let Ok(id) = Id::parse("teams", name) else {
            let problem = "must be 1 to 512 bytes without control characters";
            return Err(fields.error(format!("teams[{at}]"), problem));
        };
        if !only.insert(id.into_string()) {
            return Err(fields.error(format!("teams[{at}]"), "is given twice"));
        }
    }
    Ok(TeamScope::Only(only))
}

fn limits(fields: &mut Fields) -> anyhow::Result<PrincipalLimits> {
    let per_second = match fields.optional("rate", Fields::text)? {
        Some(text) => {
            let number = text.strip_suffix("/s").filter(|number| !number.starts_with('+'));
            let number = number.and_then(|number| number.parse::<u32>().ok());
            let Some(number) = number.filter(|number| (1..=MAX_LIMIT).contains(number)) else {
                let problem = format!("must be \"N/s\" with N from 1 to {MAX_LIMIT}");
                return Err(fields.error("rate", problem));
            };
            Some(number)
        }
        None => None,
    };
    let burst = fields.number("burst", 1..=MAX_LIMIT)?;
    let rate = match (per_second, burst) {
        (Some(per_second), burst) => Some(Rate { per_second, burst: burst.unwrap_or(per_second) }),
        (None, None) => None,
        (None, Some(_)) => return Err(fields.error("burst", "needs a rate")),
    };
    Ok(PrincipalLimits {
        rate,
        in_flight: fields.number("in_flight", 1..=MAX_LIMIT)?,
        waiters: fields.number("waiters", 0..=MAX_LIMIT)?,
    })
}

/// The credentials in `field`, each as `read` reads it.
fn credentials<T>(
    fields: &mut Fields,
    field: &'static str,
    rule: &'static str,
    read: impl Fn(String) -> Option<T>,
) -> anyhow::Result<Vec<T>> {
    let texts = fields.texts(field)?.unwrap_or_default();
    if texts.len() > MAX_CREDENTIALS {
        return Err(fields.error(field, format!("must have at most {MAX_CREDENTIALS} entries")));
    }
    let read_one =
        |(at, text)| read(text).ok_or_else(|| fields.error(format!("{field}[{at}]"), rule));
    texts.into_iter().enumerate().map(read_one).collect()
}

fn uids(fields: &mut Fields) -> anyhow::Result<Vec<u32>> {
    let numbers = fields.numbers("unix_uid")?.unwrap_or_default();
    let read_one = |(at, number)| {
        // The highest stands for "no uid".
        let uid = u32::try_from(number).ok().filter(|uid| *uid != u32::MAX);
        let field = format!("unix_uid[{at}]");
        match uid {
            Some(OVERFLOW_UID) => {
                let problem = format!(
                    "must not be {OVERFLOW_UID}, which any user without a mapping in the user \
                     namespace shows"
                );
                Err(fields.error(field, problem))
            }
            Some(uid) => Ok(uid),
            None => Err(fields.error(field, "must be a uid")),
        }
    };
    numbers.into_iter().enumerate().map(read_one).collect()
}

fn account(text: &str) -> Option<AccountEntry> {
    let (issuer, account) = match text.split_once(':') {
        Some((issuer, account)) => (Some(issuer), account),
        None => (None, text),
    };
    let (namespace, name) = account.split_once('/')?;
    let is_sound = issuer.is_none_or(is_name) && is_dns(namespace, 63) && is_dns(name, 253);
    is_sound.then(|| AccountEntry {
        issuer: issuer.map(str::to_owned),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// Whether Kubernetes would allow the name.
fn is_dns(name: &str, most: usize) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    (1..=most).contains(&name.len()) && name.bytes().all(allowed)
}

fn issuer(mut fields: Fields) -> anyhow::Result<IssuerEntry> {
    let entry = IssuerEntry {
        url: fields.required("issuer", Fields::text)?,
        audience: fields.required("audience", Fields::text)?,
        jwks: fields.required("jwks", Fields::text)?.into(),
    };
    for (field, text) in [("issuer", &entry.url), ("audience", &entry.audience)] {
        if text.is_empty() || text.len() > 1024 || text.chars().any(char::is_control) {
            return Err(fields.error(field, "must be 1 to 1024 bytes without control characters"));
        }
    }
    if !entry.jwks.is_absolute() {
        return Err(fields.error("jwks", "must be an absolute path"));
    }
    fields.finish()?;
    Ok(entry)
}
