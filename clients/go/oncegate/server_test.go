package oncegate_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
	"github.com/oncegate/oncegate/clients/go/oncegatetest"
)

// An authority issues certificates.
type authority struct {
	t      *testing.T
	folder string
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	file   string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, folder: t.TempDir()}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.file, _, a.key = a.write("ca", a.cert, nil)
	return a
}

// issue makes a certificate for 127.0.0.1, or for a client.
func (a *authority) issue(name string) (cert, key string) {
	cert, key, _ = a.write(name, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a)
	return cert, key
}

func (a *authority) write(name string, cert *x509.Certificate, by *authority) (string, string, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := cert, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	files := [2]string{filepath.Join(a.folder, name+".pem"), filepath.Join(a.folder, name+".key")}
	for i, block := range []pem.Block{{Type: "CERTIFICATE", Bytes: der}, {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(files[i], pem.EncodeToMemory(&block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return files[0], files[1], key
}

// newToken returns a token, and its line in the file of --auth.
func newToken(t *testing.T) (token, line string) {
	t.Helper()
	output, err := exec.Command(os.Getenv("ONCEGATE_BINARY"), "token", "new").Output()
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	if err != nil || len(lines) != 2 {
		t.Fatalf("%s: %v", output, err)
	}
	return lines[0], lines[1]
}

func freeAddress(t *testing.T) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	return free.Addr().String()
}

// A secured server has two principals, each with a token and a team of its own.
type secured struct {
	ca            *authority
	address       string
	first, second string
}

func startSecured(t *testing.T, arguments ...string) *secured {
	s := &secured{ca: newAuthority(t)}
	var principals string
	for _, who := range []struct {
		name, team string
		token      *string
	}{{"first", "T1", &s.first}, {"second", "T2", &s.second}} {
		token, line := newToken(t)
		*who.token = token
		principals += fmt.Sprintf("[[principal]]\nname = %q\nrole = \"bot\"\nteams = [%q]\n%s\n", who.name, who.team, line)
	}
	auth := filepath.Join(t.TempDir(), "auth.toml")
	if err := os.WriteFile(auth, []byte(principals), 0o600); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	cert, key := s.ca.issue("server")
	all := []string{"--listen", address, "--tls-cert", cert, "--tls-key", key, "--auth", auth}
	for _, argument := range arguments {
		all = append(all, strings.ReplaceAll(argument, "CA", s.ca.file))
	}
	oncegatetest.Start(t, all...)
	s.address = "https://" + address
	return s
}

func (s *secured) gate(t *testing.T, options ...oncegate.GateOption) *oncegate.Gate {
	t.Helper()
	defaults := []oncegate.GateOption{oncegate.WithServer(s.address), oncegate.Patience(time.Second)}
	gate, err := oncegate.New(append(defaults, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gate.Close)
	return gate
}

func deliveryOf(team string) oncegate.Delivery { return oncegate.Delivery{Team: team, Event: "E1"} }

func denied(t *testing.T, err error, reason string) {
	t.Helper()
	var e *oncegate.Error
	if !errors.Is(err, oncegate.ErrDenied) || !errors.As(err, &e) || e.Reason != reason {
		t.Errorf("%v, expected %s", err, reason)
	}
}

func TestTokensOverTLS(t *testing.T) {
	s := startSecured(t)
	file := filepath.Join(t.TempDir(), "token")
	replace := func(token string) {
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	replace(s.first)
	gate := s.gate(t, oncegate.WithTLSCA(s.ca.file), oncegate.WithTokenFile(file))
	if item, err := gate.Mark(t.Context(), deliveryOf("T1")); err != nil || !item.First {
		t.Fatal(item, err)
	}
	_, err := gate.Mark(t.Context(), deliveryOf("T2"))
	denied(t, err, "TEAM_DENIED")
	replace(s.second)
	turn, err := gate.Begin(t.Context(), deliveryOf("T2"))
	if err != nil {
		t.Fatal(err)
	}
	if err := turn.Succeed(nil); err != nil {
		t.Error(err)
	}
	_, err = s.gate(t, oncegate.WithTLSCA(s.ca.file), oncegate.WithToken("unknown")).Seen(t.Context(), deliveryOf("T1"))
	denied(t, err, "UNAUTHENTICATED")
}

func TestAServerThatIsNotTrusted(t *testing.T) {
	s := startSecured(t)
	gate := s.gate(t, oncegate.WithTLSCA(newAuthority(t).file), oncegate.WithToken(s.first))
	_, err := gate.Mark(t.Context(), deliveryOf("T1"))
	if !errors.Is(err, oncegate.ErrUnavailable) || !strings.Contains(err.Error(), "WithTLSCA") {
		t.Error(err)
	}
}

func TestClientCertificates(t *testing.T) {
	s := startSecured(t, "--tls-client-ca", "CA")
	without := s.gate(t, oncegate.WithTLSCA(s.ca.file), oncegate.WithToken(s.first))
	if _, err := without.Mark(t.Context(), deliveryOf("T1")); !errors.Is(err, oncegate.ErrUnavailable) {
		t.Errorf("without a certificate: %v", err)
	}
	cert, key := s.ca.issue("client")
	gate := s.gate(t, oncegate.WithTLSCA(s.ca.file), oncegate.WithTLSCert(cert, key), oncegate.WithToken(s.first))
	if item, err := gate.Mark(t.Context(), deliveryOf("T1")); err != nil || !item.First {
		t.Error(item, err)
	}
	other, _ := newAuthority(t).issue("other")
	mixed := s.gate(t, oncegate.WithTLSCA(s.ca.file), oncegate.WithTLSCert(other, key))
	if _, err := mixed.Mark(t.Context(), deliveryOf("T1")); !errors.Is(err, oncegate.ErrMisconfigured) {
		t.Errorf("a certificate and the key of another one: %v", err)
	}
}

func TestAPanicFailsTheTurn(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	func() {
		defer func() {
			if recover() != "a bug" {
				t.Error("the panic has not come out")
			}
		}()
		handler := func(context.Context, *oncegate.Turn) (int, error) { panic("a bug") }
		_, _ = oncegate.Run(t.Context(), gate, deliveryOf("T1"), handler)
	}()
	if turns := server.Turns("T1"); len(turns) != 0 {
		t.Errorf("%v", turns)
	}
	turn, err := gate.Begin(t.Context(), deliveryOf("T1"))
	if err != nil || turn.Attempt() != 2 {
		t.Errorf("%v", err)
	}
	turn.Close()
	turn.Close() // does nothing
}

func TestATypedDuplicate(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	type receipt struct{ Amount int }
	book := func(context.Context, *oncegate.Turn) (receipt, error) { return receipt{5}, nil }
	for range 2 {
		if got, err := oncegate.Once(t.Context(), gate, deliveryOf("T1"), book); err != nil || got.Amount != 5 {
			t.Errorf("%v: %v", got, err)
		}
	}
	text := func(context.Context, *oncegate.Turn) ([]string, error) { return nil, errors.New("it ran") }
	out, err := oncegate.Run(t.Context(), gate, deliveryOf("T1"), text)
	if err != nil || out.Kind != oncegate.Duplicate || out.ResultErr == nil {
		t.Errorf("a result of another type: %v, %v", out, err)
	}
	_, err = gate.Begin(t.Context(), deliveryOf("T1"))
	var refused *oncegate.NotGrantedError
	var stored receipt
	if !errors.Is(err, oncegate.ErrDuplicate) || !errors.As(err, &refused) || refused.Result(&stored) != nil || stored.Amount != 5 {
		t.Errorf("%v: %v", stored, err)
	}
}

func TestAClosedGate(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	turn, err := gate.Begin(t.Context(), deliveryOf("T1"))
	if err != nil {
		t.Fatal(err)
	}
	gate.Close()
	gate.Close()
	if context.Cause(turn.Context()) != oncegate.ErrLost || len(server.Turns("T1")) != 0 {
		t.Errorf("%v, %v", context.Cause(turn.Context()), server.Turns("T1"))
	}
	_, err = gate.Begin(t.Context(), deliveryOf("T1"))
	_, marked := gate.Mark(t.Context(), deliveryOf("T1"))
	for _, err := range []error{err, marked} {
		if !errors.Is(err, oncegate.ErrClosed) || !errors.Is(err, oncegate.ErrUnavailable) {
			t.Error(err)
		}
	}
}

func TestAnEndDuringAClose(t *testing.T) {
	_, server := oncegatetest.Start(t)
	for round := range 50 {
		gate := server.Gate()
		turn, err := gate.Begin(t.Context(), oncegate.Delivery{Team: "T1", Event: fmt.Sprint(round)})
		if err != nil {
			t.Fatal(err)
		}
		var closing sync.WaitGroup
		closing.Go(gate.Close)
		if err := turn.Succeed(round); err != nil && !errors.Is(err, oncegate.ErrLost) {
			t.Errorf("round %d: %v", round, err)
		}
		closing.Wait()
	}
	if turns := server.Turns("T1"); len(turns) != 0 {
		t.Errorf("%v", turns)
	}
}

func TestASecondEnd(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	turn, err := gate.Begin(t.Context(), deliveryOf("T1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := turn.Reject("no topic"); err != nil {
		t.Error(err)
	}
	var lost *oncegate.LostError
	for what, err := range map[string]error{"Check": turn.Check(), "Succeed": turn.Succeed(1)} {
		if !errors.As(err, &lost) || lost.Reason != "ENDED" || strings.Contains(err.Error(), "another run") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if errors.As(turn.Succeed(1), &lost); lost.Outcome != "REJECTED" {
		t.Errorf("the first end is %q", lost.Outcome)
	}
}

func TestAListOfAddresses(t *testing.T) {
	address := freeAddress(t)
	oncegatetest.Start(t, "--listen", address)
	for _, list := range []string{address, "127.0.0.1:1," + address} { // nothing listens on port 1
		gate, err := oncegate.New(oncegate.WithServer("ipv4:" + list))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(gate.Close)
		turn, err := gate.Begin(t.Context(), oncegate.Delivery{Team: "T1", Event: list})
		if err != nil {
			t.Fatalf("%s: %v", list, err)
		}
		if err := turn.Succeed(nil); err != nil {
			t.Error(err)
		}
	}
}

func TestADrainThatIsCut(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	turn, err := gate.Begin(t.Context(), deliveryOf("T1"))
	if err != nil {
		t.Fatal(err)
	}
	defer turn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := gate.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || turn.LostReason() != "CLOSED" {
		t.Errorf("%v, %s", err, turn.LostReason())
	}
	<-gate.Done()
}

// relay passes connections on to a server, and reports each one that has ended.
func relay(t *testing.T, server string) (address string, ended <-chan struct{}) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	done := make(chan struct{}, 1000)
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // the test is over
			}
			go func() {
				defer client.Close()
				defer func() { done <- struct{}{} }()
				onward, err := net.Dial("tcp", strings.TrimPrefix(server, "https://"))
				if err != nil {
					return // the server has ended
				}
				defer onward.Close()
				go func() {
					_, _ = io.Copy(onward, client)
					_ = onward.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(client, onward)
			}()
		}
	}()
	return "https://" + listener.Addr().String(), done
}

func TestAClientCertificateThatIsReplaced(t *testing.T) {
	s := startSecured(t, "--tls-client-ca", "CA")
	address, ended := relay(t, s.address)
	cert, key := newAuthority(t).issue("client") // which the server does not trust
	gate := s.gate(t, oncegate.WithServer(address), oncegate.WithTLSCA(s.ca.file), oncegate.WithTLSCert(cert, key),
		oncegate.WithToken(s.first), oncegate.Patience(time.Minute))
	marked := make(chan error, 1)
	go func() {
		_, err := gate.Mark(context.Background(), deliveryOf("T1"))
		marked <- err
	}()
	for range 2 { // the first attempt fails, and is repeated
		select {
		case err := <-marked:
			t.Fatalf("with a certificate of another authority: %v", err)
		case <-ended:
		}
	}
	newCert, newKey := s.ca.issue("client")
	for from, to := range map[string]string{newCert: cert, newKey: key} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-marked; err != nil {
		t.Error(err)
	}
}
