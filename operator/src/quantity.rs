//! Kubernetes' quantities, as far as bytes are written with them.

/// Bytes of `10Gi`, `1500M`, `1e9`, `0.5Ti`, ..., rounded up; `None`: not a positive amount below
/// 2^63.
pub fn bytes(text: &str) -> Option<u64> {
    thousandths(text)?
        .checked_add(999)
        .map(|t| t / 1_000)
        .and_then(|b| u64::try_from(b).ok())
        .filter(|b| (1..1 << 63).contains(b))
}

/// Whether two texts say the same amount: the API server writes `1024Mi` as `1Gi`.
pub fn same(a: &str, b: &str) -> bool {
    a == b || thousandths(a).is_some_and(|a| Some(a) == thousandths(b))
}

fn thousandths(text: &str) -> Option<u128> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(at);
    let factor: u128 = match suffix {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        "M" => 1_000 * 1_000_000,
        "G" => 1_000 * 1_000_000_000,
        "T" => 1_000 * 1_000_000_000_000,
        "P" => 1_000 * 1_000_000_000_000_000,
        "E" => 1_000 * 1_000_000_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        "Ti" => 1_000 << 40,
        "Pi" => 1_000 << 50,
        "Ei" => 1_000 << 60,
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            1_000_u128.checked_mul(10_u128.checked_pow(digits.parse().ok()?)?)?
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    digits.checked_mul(factor).map(|t| t.div_ceil(10_u128.pow(fraction.len() as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        assert_eq!(bytes("10Gi"), Some(10 << 30));
        assert_eq!(bytes("1500M"), Some(1_500_000_000));
        assert_eq!(bytes("0.5Ki"), Some(512));
        assert_eq!(bytes("1e3"), Some(1_000));
        assert_eq!(bytes("1E"), Some(1_000_000_000_000_000_000));
        assert_eq!(bytes("1500m"), Some(2));
        for bad in ["", "0", "Gi", ".", "ten", "1gi", "-1", "1e400", "9999999E", "1.2.3"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_same_amount_may_be_written_in_two_ways() {
        assert!(same("1024Mi", "1Gi") && same("0.5", "500m") && same("x", "x"));
        assert!(!same("1G", "1Gi") && !same("x", "y") && !same("1", "x"));
    }
}
