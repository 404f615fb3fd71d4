package storagetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificate is a self-signed certificate, in the files that the servers read.
type certificate struct {
	pool                        *x509.CertPool
	certFile, keyFile, bothFile string
}

func newCertificate(tb testing.TB) *certificate {
	tb.Helper()
	must := func(err error) {
		if err != nil {
			tb.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: domain},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{domain, "*." + domain}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})

	c := &certificate{pool: x509.NewCertPool()}
	c.pool.AppendCertsFromPEM(certPEM)
	dir := tb.TempDir()
	for _, f := range []struct {
		path    *string
		name    string
		content []byte
	}{{&c.certFile, "cert.pem", certPEM}, {&c.keyFile, "key.pem", keyPEM}, {&c.bothFile, "both.pem", append(keyPEM, certPEM...)}} {
		*f.path = filepath.Join(dir, f.name)
		must(os.WriteFile(*f.path, f.content, 0o600))
	}
	return c
}
