//! When a certificate is valid, read from its DER form: rustls and webpki check it, and do not
//! say it. <https://www.rfc-editor.org/rfc/rfc5280.html#section-4.1>

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::pki_types::UnixTime;

use crate::der::expect;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The version, which need not be there.
const EXPLICIT_0: u8 = 0xa0;

/// From when until when, both included. In seconds since 1970: a certificate may end in 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: i64,
    /// The last second.
    pub not_after: i64,
}

impl Validity {
    /// Reads it; none where `certificate` is not in the form of RFC 5280.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let (certificate, _) = expect(certificate, SEQUENCE)?;
        let (mut fields, _) = expect(certificate, SEQUENCE)?;
        if let Some((_, rest)) = expect(fields, EXPLICIT_0) {
            fields = rest;
        }
        // The serial number, the algorithm of the signature, the issuer.
        for tag in [INTEGER, SEQUENCE, SEQUENCE] {
            (_, fields) = expect(fields, tag)?;
        }
        let (validity, _) = expect(fields, SEQUENCE)?;
        let (not_before, rest) = time(validity)?;
        let (not_after, _) = time(rest)?;
        Some(Self { not_before, not_after })
    }

    /// The first moment after it; none where a clock cannot say it.
    pub(super) fn end(self) -> Option<SystemTime> {
        let seconds = u64::try_from(self.not_after).ok()?;
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds.checked_add(1)?))
    }

    /// Whether it is valid at `now`.
    pub(super) fn contains(self, now: UnixTime) -> bool {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        (self.not_before..=self.not_after).contains(&now)
    }
}

/// A point in time, in seconds since 1970, and what follows it.
fn time(der: &[u8]) -> Option<(i64, &[u8])> {
    let ((text, rest), year_digits) = match expect(der, UTC_TIME) {
        Some(found) => (found, 2),
        None => (expect(der, GENERALIZED_TIME)?, 4),
    };
    let (digits, zone) = text.split_at_checked(year_digits + 10)?;
    if zone != b"Z" || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number =
        |of: &[u8]| of.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'));
    let (year, rest_of_it) = digits.split_at(year_digits);
    let year = match (number(year), year_digits) {
        (year @ 50.., 2) => 1900 + year,
        (year, 2) => 2000 + year,
        (year, _) => year,
    };
    let mut pairs = rest_of_it.chunks(2).map(number);
    let [month, day, hour, minute, second] = std::array::from_fn(|_| pairs.next().unwrap_or(0));
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24;
    if !in_range || minute > 59 || second > 59 {
        return None;
    }
    Some((days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second, rest))
}

/// Days since 1970: <https://howardhinnant.github.io/date_algorithms.html#days_from_civil>.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn made(from: (i32, u8, u8), until: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(until.0, until.1, until.2);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_times_of_a_certificate_are_read() {
        // `date -u -d 2026-11-27 +%s`; years below 2050 have two digits, others four.
        for (from, until, not_before, not_after) in [
            ((1999, 12, 31), (2026, 11, 27), 946_598_400, 1_795_737_600),
            ((2024, 2, 29), (2050, 1, 1), 1_709_164_800, 2_524_608_000),
            ((1970, 1, 1), (9999, 12, 31), 0, 253_402_214_400),
        ] {
            let read = Validity::of(&made(from, until)).unwrap();
            assert_eq!(read, Validity { not_before, not_after });
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_times_and_does_no_harm() {
        let good = made((2024, 1, 1), (2025, 1, 1));
        // Cut anywhere before its end, the outer value is not whole.
        for end in 0..good.len() {
            assert_eq!(Validity::of(&good[..end]), None, "{end}");
        }
        for at in 0..200 {
            for byte in [0x00, 0x7f, 0x80, 0x84, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = Validity::of(&bad);
            }
        }
        for text in ["2413010000000", "24010100000Z0", "240101000000+", "999999999999Z", "Z"] {
            let der = [&[UTC_TIME, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            assert_eq!(time(&der), None, "{text}");
        }
    }

    #[test]
    fn both_ends_are_included() {
        let validity = Validity { not_before: 10, not_after: 20 };
        let at = |second| UnixTime::since_unix_epoch(Duration::from_secs(second));
        assert!(validity.contains(at(10)) && validity.contains(at(20)));
        assert!(!validity.contains(at(9)) && !validity.contains(at(21)));
    }
}
