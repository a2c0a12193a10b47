#!/usr/bin/env python3
"""pki.py DIR: make what istiod needs to authenticate clients without Kubernetes (nothing is overwritten).

DIR/cacerts/{ca-cert,ca-key,root-cert,cert-chain}.pem   plug-in CA for ROOT_CA_DIR (an intermediate under a root)
DIR/jwt.key, DIR/jwks.json                              token signing key and its public JWKS
DIR/tls.crt, DIR/tls.key                                a server certificate for *.example.com, signed by the root
pki.py DIR token NS SA [ISS [AUD]]                      print a token: istiod's (sub system:serviceaccount:NS:SA)
"""

import base64
import datetime
import json
import os
import sys
import time

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

PEM, RAW, NOENC = ser.Encoding.PEM, ser.PrivateFormat.TraditionalOpenSSL, ser.NoEncryption()


def name(cn):
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "test mesh"), x509.NameAttribute(NameOID.COMMON_NAME, cn)]
    )


def cert(cn, pub, issuer, key, ca=None, sans=()):
    now = datetime.datetime.now(datetime.timezone.utc)
    b = (
        x509.CertificateBuilder()
        .subject_name(name(cn))
        .issuer_name(issuer)
        .public_key(pub)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=365))
    )
    b = b.add_extension(x509.BasicConstraints(ca is not None, ca), critical=True)
    if ca is not None:
        b = b.add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
    b = b.add_extension(x509.SubjectKeyIdentifier.from_public_key(pub), critical=False)
    b = b.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    if sans:
        b = b.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return b.sign(key, hashes.SHA256())


def make(d):
    ca = os.path.join(d, "cacerts")
    os.makedirs(ca, exist_ok=True)

    def put(path, *parts):
        with open(os.path.join(d, path), "wb", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.write(b"".join(parts))

    root, mid, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    rc = cert("root", root.public_key(), name("root"), root, ca=2)
    mc = cert("istiod", mid.public_key(), name("root"), root, ca=0)
    lc = cert("server", leaf.public_key(), name("root"), root, sans=[x509.DNSName("*.example.com")])
    rp, mp, lp = (c.public_bytes(PEM) for c in (rc, mc, lc))
    put("cacerts/root-cert.pem", rp)
    put("cacerts/ca-cert.pem", mp)
    put("cacerts/cert-chain.pem", mp)
    put("cacerts/ca-key.pem", mid.private_bytes(PEM, RAW, NOENC))
    put("tls.crt", lp)
    put("tls.key", leaf.private_bytes(PEM, RAW, NOENC))
    k = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    put("jwt.key", k.private_bytes(PEM, RAW, NOENC))
    n = k.public_key().public_numbers().n
    b64 = lambda i: base64.urlsafe_b64encode(i.to_bytes((i.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()
    put(
        "jwks.json",
        json.dumps(
            {"keys": [{"kty": "RSA", "kid": "test", "alg": "RS256", "use": "sig", "n": b64(n), "e": "AQAB"}]}
        ).encode(),
    )


def token(d, ns, sa, iss="https://token.example.com", aud="istio-ca", **claims):
    key = open(os.path.join(d, "jwt.key")).read()
    now = int(time.time())
    body = {
        "iss": iss,
        "aud": [aud],
        "sub": f"system:serviceaccount:{ns}:{sa}",
        "iat": now,
        "exp": now + 3600,
        **claims,
    }
    return jwt.encode(body, key, algorithm="RS256", headers={"kid": "test"})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if len(sys.argv) > 2:
        print(token(sys.argv[1], *sys.argv[3:]))
    elif not os.path.exists(os.path.join(sys.argv[1], "jwks.json")):
        make(sys.argv[1])
