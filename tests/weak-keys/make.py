#!/usr/bin/env python3
"""Makes the RSA keys that `signetctl key import` must refuse, each with one fault. They protect nothing and never will."""

import base64
import math
import os
import random

random.seed(20261121)
SMALL = [n for n in range(3, 2000) if all(n % d for d in range(2, int(n**0.5) + 1))]


def is_prime(n):
    if any(n % p == 0 for p in SMALL if p < n):
        return False
    s, d = 0, n - 1
    while d % 2 == 0:
        s, d = s + 1, d // 2
    for _ in range(20):
        x = pow(random.randrange(2, n - 1), d, n)
        if x in (1, n - 1):
            continue
        for _ in range(s - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def prime(bits, e=65537):
    while True:
        n = random.getrandbits(bits) | (3 << (bits - 2)) | 1
        if math.gcd(n - 1, e) == 1 and is_prime(n):
            return n


def next_prime(n, e=65537):
    n |= 1
    while not (math.gcd(n - 1, e) == 1 and is_prime(n)):
        n += 2
    return n


def der(tag, body):
    size = (len(body).bit_length() + 7) // 8
    length = bytes([len(body)]) if len(body) < 128 else bytes([0x80 | size]) + len(body).to_bytes(size, "big")
    return bytes([tag]) + length + body


def integer(n):
    return der(2, n.to_bytes(n.bit_length() // 8 + 1, "big"))


def write(name, p, q, e=65537, n=None, d=None):
    phi = (p - 1) * (q - 1)
    if d is None:
        d = pow(e, -1, phi) if math.gcd(e, phi) == 1 else phi // 3 | 1
    coefficient = pow(q, -1, p) if p != q else 1
    numbers = [0, n or p * q, e, d, p, q, d % (p - 1), d % (q - 1), coefficient]
    text = base64.b64encode(der(0x30, b"".join(map(integer, numbers)))).decode()
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".pem")
    with open(path, "w") as file:
        file.write(f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----\n")


p, q = prime(1024), prime(1024)
phi = (p - 1) * (q - 1)
write("wrong-modulus", p, q, n=p * q + 2)
write("wrong-private-exponent", p, q, d=pow(65537, -1, phi) ^ (1 << 900))
write("exponent-1", p, q, e=1)
write("exponent-even", p, q, e=65538)
write("same-primes", p, p)
write("close-primes", p, next_prime(p + (1 << 200)))

small = prime(300)
while math.gcd(small, phi) != 1:
    small = prime(300)
# Its true public exponent is as long as the modulus, and would be refused for that: so this one says 65537.
write("small-private-exponent", p, q, d=small)

for bits in (512, 1024, 1536, 4160):
    write(f"bits-{bits}", prime(bits // 2), prime(bits // 2))

p3, q3 = prime(1024, 3), prime(1024, 3)
write("exponent-3", p3, q3, e=3)

# ROCA (CVE-2017-15361): p = k * M + 65537^a mod M, for 2,048 bits M is the product of the first 126 primes.
M = math.prod([2] + SMALL[:125])


def roca_prime():
    while True:
        n = random.getrandbits(1024 - M.bit_length()) * M + pow(65537, random.getrandbits(200), M)
        if n.bit_length() == 1024 and n >> 1022 == 3 and math.gcd(n - 1, 65537) == 1 and is_prime(n):
            return n


write("roca", roca_prime(), roca_prime())
