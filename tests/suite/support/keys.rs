//! Private keys that exist outside of a device, to be imported.

use der::Decode as _;
use signet::device::PrivateKey;
use zeroize::Zeroizing;

/// Makes an RSA key of 2,048 bits in software.
pub(crate) fn rsa() -> PrivateKey {
    use aws_lc_rs::encoding::AsDer as _;
    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    rsa_from_pkcs8(pair.as_der().unwrap().as_ref())
}

/// Makes an EC key on P-256 in software.
pub(crate) fn ec() -> PrivateKey {
    use aws_lc_rs::encoding::AsBigEndian as _;
    use aws_lc_rs::signature::KeyPair as _;
    let pair =
        aws_lc_rs::signature::EcdsaKeyPair::generate(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let scalar = Zeroizing::new(pair.private_key().as_be_bytes().unwrap().as_ref().to_vec());
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    let pkcs8 = Zeroizing::new(pair.to_pkcs8v1().unwrap().as_ref().to_vec());
    PrivateKey::EcP256 { scalar, x: x.try_into().unwrap(), y: y.try_into().unwrap(), pkcs8 }
}

/// Reads a DER PKCS#8 RSA key.
pub(crate) fn rsa_from_pkcs8(pkcs8: &[u8]) -> PrivateKey {
    let info = pkcs8::PrivateKeyInfoRef::from_der(pkcs8).unwrap();
    let key = pkcs1::RsaPrivateKeyRef::from_der(info.private_key.as_bytes()).unwrap();
    let secret = |number: pkcs1::UintRef<'_>| Zeroizing::new(number.as_bytes().to_vec());
    PrivateKey::Rsa {
        modulus: key.modulus.as_bytes().to_vec(),
        public_exponent: key.public_exponent.as_bytes().to_vec(),
        private_exponent: secret(key.private_exponent),
        prime1: secret(key.prime1),
        prime2: secret(key.prime2),
        exponent1: secret(key.exponent1),
        exponent2: secret(key.exponent2),
        coefficient: secret(key.coefficient),
        pkcs8: Zeroizing::new(pkcs8.to_vec()),
    }
}
