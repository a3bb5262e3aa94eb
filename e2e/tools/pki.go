package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// identity is one certificate of a cluster that lives for a test.
type identity struct {
	File         string   `json:"file"`
	User         string   `json:"user"`
	Organization string   `json:"organization"`
	Names        []string `json:"names"`
	Addresses    []net.IP `json:"addresses"`
}

// validity is longer than any test and shorter than anything that a leaked key could be good for.
const validity = 7 * 24 * time.Hour

// pki writes a certificate authority (ca.crt), the key of service account tokens (sa.key, sa.pub), and FILE.crt and
// FILE.key of every identity that it reads as JSON: `pki DIRECTORY < identities.json`.
func pki(args []string) {
	if len(args) != 2 {
		fatal(fmt.Errorf("usage: pki DIRECTORY < identities.json"))
	}
	var identities []identity
	fatal(json.NewDecoder(os.Stdin).Decode(&identities))
	dir := args[1]

	tokens := newKey()
	writeKey(filepath.Join(dir, "sa.key"), tokens)
	public, err := x509.MarshalPKIXPublicKey(&tokens.PublicKey)
	fatal(err)
	write(filepath.Join(dir, "sa.pub"), "PUBLIC KEY", public)

	authorityKey := newKey()
	authority := template("veni-e2e")
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	certify(filepath.Join(dir, "ca"), authority, authority, authorityKey, authorityKey)

	for _, of := range identities {
		certificate := template(of.User)
		if of.Organization != "" {
			certificate.Subject.Organization = []string{of.Organization}
		}
		certificate.DNSNames, certificate.IPAddresses = of.Names, of.Addresses
		certificate.KeyUsage = x509.KeyUsageDigitalSignature
		certificate.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		key := newKey()
		file := filepath.Join(dir, of.File)
		certify(file, certificate, authority, key, authorityKey)
		writeKey(file+".key", key)
	}
}

func template(user string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	fatal(err)
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: user},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(validity),
	}
}

func certify(file string, certificate, authority *x509.Certificate, key, authorityKey *ecdsa.PrivateKey) {
	der, err := x509.CreateCertificate(rand.Reader, certificate, authority, &key.PublicKey, authorityKey)
	fatal(err)
	write(file+".crt", "CERTIFICATE", der)
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(err)
	return key
}

func writeKey(file string, key *ecdsa.PrivateKey) {
	der, err := x509.MarshalECPrivateKey(key)
	fatal(err)
	write(file, "EC PRIVATE KEY", der)
}

func write(file, kind string, der []byte) {
	fatal(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "pki:", err)
		os.Exit(1)
	}
}
