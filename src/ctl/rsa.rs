//! Whether the numbers of an RSA key make a key worth having: RFC 8017, 3.2 and FIPS 186-5, A.1, and two known blunders.
//!
//! The keys that Debian's OpenSSL made in 2006 to 2008 can be told only by lists of several megabytes, which nobody ships any
//! more: they are not looked for. Numbers are big-endian, of any length.

use zeroize::Zeroizing;

use crate::key::{RSA_BITS, RSA_EXPONENT_BITS, bit_length, trimmed};

/// The numbers as a file gives them.
#[derive(Clone, Copy)]
pub(crate) struct Numbers<'a> {
    /// n.
    pub(crate) modulus: &'a [u8],
    /// e.
    pub(crate) public_exponent: &'a [u8],
    /// d.
    pub(crate) private_exponent: &'a [u8],
    /// p.
    pub(crate) prime1: &'a [u8],
    /// q.
    pub(crate) prime2: &'a [u8],
}

/// Says what is wrong with a key. Whether d and the CRT numbers belong to the primes is left to the library's check.
pub(crate) fn weakness(key: Numbers<'_>) -> Option<String> {
    let bits = bit_length(key.modulus);
    if bits < *RSA_BITS.start() {
        return Some(format!("an RSA key of {bits} bits is too small; 2048 to 4096 are taken"));
    }
    if bits > *RSA_BITS.end() {
        return Some(format!("an RSA key of {bits} bits is too large; 2048 to 4096 are taken"));
    }
    if remainder(key.public_exponent, 2) == 0 {
        return Some("the public exponent is even".to_owned());
    }
    if bit_length(key.public_exponent) < *RSA_EXPONENT_BITS.start() {
        return Some("the public exponent is below 65537".to_owned());
    }
    if bit_length(key.public_exponent) > *RSA_EXPONENT_BITS.end() {
        return Some("the public exponent is over 64 bits; 65537 is usual".to_owned());
    }
    let distance = difference(key.prime1, key.prime2);
    if bit_length(&distance) == 0 {
        return Some("both primes are the same: anybody can take the root of the modulus".to_owned());
    }
    if *trimmed(&product(key.prime1, key.prime2)) != *trimmed(key.modulus) {
        return Some("the modulus is not the product of the primes".to_owned());
    }
    // FIPS 186-5, A.1.3. Fermat's method, in as many rounds as anybody can wait for, needs primes much closer still.
    if bit_length(&distance) + 100 <= bits / 2 {
        return Some("the primes are too close to each other: Fermat's method finds them".to_owned());
    }
    if bit_length(key.private_exponent) <= bits / 2 {
        return Some("the private exponent is too small: Wiener's method finds it".to_owned());
    }
    if is_roca(key.modulus) {
        return Some("the modulus has the fingerprint of ROCA (CVE-2017-15361): the primes can be found".to_owned());
    }
    None
}

/// Infineon's library made primes as k * M + (65537^a mod M), M a product of small primes: so each such key is a power of
/// 65537 modulo every one of them, which a sound key is with a chance of one in 2^27 or less.
fn is_roca(modulus: &[u8]) -> bool {
    ROCA_PRIMES.iter().all(|prime| {
        let wanted = remainder(modulus, *prime);
        let powers = std::iter::successors(Some(1), |power| Some(power * 65_537 % prime));
        powers.take(*prime as usize).any(|power| power == wanted)
    })
}

fn remainder(number: &[u8], divisor: u64) -> u64 {
    number.iter().fold(0, |rest, byte| ((rest << 8) | u64::from(*byte)) % divisor)
}

fn product(a: &[u8], b: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut columns = Zeroizing::new(vec![0_u64; a.len() + b.len()]);
    // A column sums at most 2^16 products below 2^16 for any key that is looked at.
    for (i, x) in a.iter().rev().enumerate() {
        for (column, y) in columns.iter_mut().skip(i).zip(b.iter().rev()) {
            *column += u64::from(*x) * u64::from(*y);
        }
    }
    let mut carry = 0;
    let mut bytes = Zeroizing::new(Vec::with_capacity(columns.len()));
    for column in columns.iter() {
        carry += column;
        bytes.push((carry & 0xff) as u8);
        carry >>= 8;
    }
    bytes.reverse();
    bytes
}

/// |a - b|.
fn difference(a: &[u8], b: &[u8]) -> Zeroizing<Vec<u8>> {
    let (a, b) = (trimmed(a), trimmed(b));
    let (larger, smaller) = if (a.len(), a) >= (b.len(), b) { (a, b) } else { (b, a) };
    let mut borrow = 0;
    let mut bytes = Zeroizing::new(Vec::with_capacity(larger.len()));
    for (x, y) in larger.iter().rev().zip(smaller.iter().rev().chain(std::iter::repeat(&0))) {
        let digit = i16::from(*x) - i16::from(*y) - borrow;
        borrow = i16::from(digit < 0);
        bytes.push((digit & 0xff) as u8);
    }
    bytes.reverse();
    bytes
}

const ROCA_PRIMES: [u64; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109,
    113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_that_of_machine_words() {
        for (a, b) in
            [(0_u64, 0_u64), (1, 255), (256, 255), (u64::MAX, u64::MAX), (0x1_0000_0000, 0xffff_ffff), (7, 1 << 60)]
        {
            let (x, y) = (a.to_be_bytes(), b.to_be_bytes());
            assert_eq!(*trimmed(&product(&x, &y)), *trimmed(&(u128::from(a) * u128::from(b)).to_be_bytes()));
            assert_eq!(*trimmed(&difference(&x, &y)), *trimmed(&a.abs_diff(b).to_be_bytes()));
            assert_eq!(remainder(&x, 167), a % 167);
            assert_eq!(bit_length(&x), 64 - a.leading_zeros() as usize);
        }
    }

    #[test]
    fn powers_of_65537_have_the_fingerprint_and_others_have_not() {
        assert!(is_roca(&[1]));
        assert!(is_roca(&[1, 0, 1]));
        assert!(!is_roca(&[2]));
        assert!(!is_roca(&[1, 0, 3]));
    }
}
