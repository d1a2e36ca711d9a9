//! SPIFFE IDs of certificates, which rcgen makes.

use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair, SanType};

use super::*;
use crate::auth::{certificate::spiffe_id, spiffe::Pattern};

/// A certificate with these URIs.
pub(super) fn with_uris(uris: &[&str]) -> CertificateDer<'static> {
    let uri = |uri: &&str| SanType::URI((*uri).try_into().unwrap());
    signed(|params| params.subject_alt_names = uris.iter().map(uri).collect())
}

fn signed(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    // A principal's name, and an ID: neither counts.
    params.distinguished_name.push(DnType::CommonName, "a");
    params.distinguished_name.push(DnType::OrganizationName, "spiffe://prod/ns/bots/sa/acme");
    change(&mut params);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
}

/// A certificate whose subject alternative name has these bytes.
fn with_names(names: &[u8], times: usize) -> CertificateDer<'static> {
    let mut content = vec![0x30, u8::try_from(names.len()).unwrap()];
    content.extend(names);
    signed(|params| {
        for _ in 0..times {
            let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], content.clone());
            params.custom_extensions.push(names);
        }
    })
}

fn uri(bytes: &[u8]) -> Vec<u8> {
    [&[0x86, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

const ACME: &str = "spiffe://prod/ns/bots/sa/acme";

fn acme() -> Policy {
    policy(&two(
        &format!("spiffe = ['{ACME}', 'spiffe://prod/jobs/*']"),
        "spiffe = ['spiffe://prod/ns/bots/sa/other', 'spiffe://dev/*']",
    ))
}

#[test]
fn only_the_exact_id_is_the_principal() {
    let policy = acme();
    assert_eq!(by_certificate(&policy, &with_uris(&[ACME])), Ok("a".into()));
    for other in [
        "spiffe://prod/ns/bots/sa/acme2",
        "spiffe://prod/ns/bots/sa/acm",
        "spiffe://prod/ns/bots/sa/acme/more",
        "spiffe://prod/ns/bots/sa",
        "spiffe://prod/ns/bots/sa/ACME",
        "spiffe://prod.evil/ns/bots/sa/acme",
        "spiffe://evil.prod/ns/bots/sa/acme",
        "spiffe://pro/ns/bots/sa/acme",
    ] {
        let answer = by_certificate(&policy, &with_uris(&[other]));
        assert_eq!(answer, Err(Unauthenticated::Unknown), "{other}");
    }
}

#[test]
fn what_is_no_spiffe_id_is_refused() {
    let policy = acme();
    for bad in [
        "SPIFFE://prod/ns/bots/sa/acme",
        "spiffe://PROD/ns/bots/sa/acme",
        "spiffe://prod/ns/bots/sa/acme/",
        "spiffe://prod//ns/bots/sa/acme",
        "spiffe://prod/ns/bots/sa/%61cme",
        "spiffe://prod/ns/bots/sa/evil/%2e%2e/acme",
        "spiffe://prod/ns/bots/sa/evil/../acme",
        "spiffe://prod/./ns/bots/sa/acme",
        "spiffe://prod/ns/bots/sa/acme?x",
        "spiffe://prod/ns/bots/sa/acme#x",
        "spiffe://prod:443/ns/bots/sa/acme",
        "spiffe://user@prod/ns/bots/sa/acme",
        "spiffe://prod",
        "spiffe://prod/",
        "spiffe:///ns/bots/sa/acme",
        "spiffe://prod/jobs/*",
        "https://prod/ns/bots/sa/acme",
        " spiffe://prod/ns/bots/sa/acme",
        "spiffe://prod/ns/bots/sa/acme\0",
        "",
    ] {
        let answer = by_certificate(&policy, &with_uris(&[bad]));
        assert_eq!(answer, Err(Unauthenticated::Malformed), "{bad:?}");
    }
    let long = format!("spiffe://dev/{}", "a".repeat(2_048));
    assert_eq!(by_certificate(&policy, &with_uris(&[&long])), Err(Unauthenticated::Malformed));
}

#[test]
fn a_wildcard_is_of_whole_segments_below() {
    let policy = acme();
    for (uri, owner) in [
        ("spiffe://prod/jobs/x", Some("a")),
        ("spiffe://prod/jobs/x/y", Some("a")),
        ("spiffe://prod/jobs", None),
        ("spiffe://prod/jobs2", None),
        ("spiffe://prod/jobs2/x", None),
        ("spiffe://prod/x/jobs/x", None),
        ("spiffe://dev/x", Some("b")),
        ("spiffe://dev/x/y/z", Some("b")),
        ("spiffe://dev2/x", None),
    ] {
        let wanted = owner.map(str::to_owned).ok_or(Unauthenticated::Unknown);
        assert_eq!(by_certificate(&policy, &with_uris(&[uri])), wanted, "{uri}");
    }
}

#[test]
fn two_uris_are_refused_and_other_names_do_not_count() {
    let policy = acme();
    for uris in [
        [ACME, "spiffe://prod/ns/bots/sa/other"],
        [ACME, ACME],
        [ACME, "https://example.com"],
        ["https://example.com", ACME],
    ] {
        let answer = by_certificate(&policy, &with_uris(&uris));
        assert_eq!(answer, Err(Unauthenticated::Malformed), "{uris:?}");
    }
    let beside = signed(|params| {
        params.subject_alt_names = vec![
            SanType::DnsName("acme.example.com".try_into().unwrap()),
            SanType::URI(ACME.try_into().unwrap()),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ];
    });
    assert_eq!(by_certificate(&policy, &beside), Ok("a".into()));
}

#[test]
fn the_common_name_is_never_an_identity() {
    let policy = acme();
    for der in [
        signed(|_| {}),
        signed(|params| params.distinguished_name.push(DnType::CommonName, ACME)),
        signed(|params| {
            params.subject_alt_names = vec![SanType::DnsName("a".try_into().unwrap())];
        }),
        signed(|params| {
            params.subject_alt_names = vec![SanType::Rfc822Name(ACME.try_into().unwrap())];
        }),
    ] {
        assert_eq!(by_certificate(&policy, &der), Err(Unauthenticated::Unknown));
    }
}

#[test]
fn names_that_a_lenient_parser_skips_are_refused() {
    let policy = acme();
    let good = uri(ACME.as_bytes());
    assert_eq!(by_certificate(&policy, &with_names(&good, 1)), Ok("a".into()));
    for (what, names) in [
        ("a second URI that is no UTF-8", [good.clone(), uri(b"spiffe://\xff/x")].concat()),
        ("a first URI that is no UTF-8", [uri(b"\xff"), good.clone()].concat()),
        ("a malformed name behind it", [good.clone(), vec![0x99, 0x01, 0x00]].concat()),
        ("a name cut short", [good.clone(), vec![0x86, 0x30, 0x00]].concat()),
        ("a malformed name, then a URI", [good.clone(), vec![0x99, 0], good.clone()].concat()),
    ] {
        let answer = by_certificate(&policy, &with_names(&names, 1));
        assert_eq!(answer, Err(Unauthenticated::Malformed), "{what}");
    }
    assert_eq!(by_certificate(&policy, &with_names(&good, 2)), Err(Unauthenticated::Malformed));
}

#[test]
fn a_certificate_cut_anywhere_or_with_any_byte_changed_does_not_panic() {
    let policy = acme();
    let der = with_uris(&[ACME]).to_vec();
    for at in 0..der.len() {
        let cut = CertificateDer::from(der[..at].to_vec());
        assert_eq!(by_certificate(&policy, &cut), Err(Unauthenticated::Malformed), "{at}");
        for byte in [0x00, 0x80, 0x86, 0xff] {
            let mut changed = der.clone();
            changed[at] = byte;
            let _ = spiffe_id(&CertificateDer::from(changed));
        }
    }
}

#[test]
fn patterns_are_ids_with_at_most_one_star_at_the_end() {
    for good in ["spiffe://prod/a", "spiffe://prod/a/*", "spiffe://prod/*", "spiffe://a.b-c_d/E.f"]
    {
        assert!(Pattern::parse(good).is_some(), "{good}");
    }
    for bad in [
        "*",
        "/*",
        "spiffe://*",
        "spiffe:///*",
        "spiffe://*/a",
        "spiffe://prod/*/a",
        "spiffe://prod/a*",
        "spiffe://prod/a/**",
        "spiffe://prod/a/*/*",
        "spiffe://prod//*",
        "spiffe://prod/../*",
        "spiffe://Prod/a",
        "spiffe://prod",
        "spiffe://prod/a/",
        "prod/a",
        "",
    ] {
        assert!(Pattern::parse(bad).is_none(), "{bad}");
    }
}
