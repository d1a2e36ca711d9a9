package oncegate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func withoutEnvironment(t *testing.T) {
	for _, setting := range os.Environ() {
		if name, _, _ := strings.Cut(setting, "="); strings.HasPrefix(name, "ONCEGATE_") && name != "ONCEGATE_BINARY" {
			t.Setenv(name, "")
		}
	}
}

func TestAddresses(t *testing.T) {
	for address, expected := range map[string]target{
		"gate:7411":               {name: "gate:7411"},
		"http://gate:7411/":       {name: "gate:7411"},
		"https://gate:7411":       {name: "gate:7411", tls: true},
		"https://[::1]:7411/":     {name: "[::1]:7411", tls: true},
		"HTTPS://gate:7411":       {name: "gate:7411", tls: true},
		"unix:/run/oncegate.sock": {name: "unix:/run/oncegate.sock"},
		"UNIX:/run/Oncegate.sock": {name: "unix:/run/Oncegate.sock"},
		"dns:///gate:7411":        {name: "dns:///gate:7411"},
		"[fe80::1%eth0]:7411":     {name: "[fe80::1%eth0]:7411"},
	} {
		found, err := parseTarget(address)
		if err != nil || found.name != expected.name || found.tls != expected.tls {
			t.Errorf("%s is %v: %v", address, found, err)
		}
	}
	for _, address := range []string{
		"https://", "https://gate", "https://me:planted@gate:1", "http://gate:1/path", "https://:7411", ":7411",
		"gate", "gate:", "gate:0", "gate:65536", "::1:7411", "[::1]", "[127.0.0.1]:1", "[]:1",
		"https://gate:1,planted:1", "https:gate:1", "grpc://gate:1", "tcp://planted:1", "xds:///gate:1",
		"ipv4:", "ipv4:gate:1", "ipv4:127.0.0.1", "ipv4:127.0.0.1:0", "ipv4:127.0.0.1:1,", "ipv4:[::1]:1",
		"ipv6:127.0.0.1:1", "ipv6:::1", "evil:1/localhost", "unix:", "unix-abstract:planted", "dns:///", " gate:1", "gate:1\n",
	} {
		if _, err := parseTarget(address); !errors.Is(err, ErrMisconfigured) || strings.Contains(err.Error(), "planted") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestLocalAddresses(t *testing.T) {
	for address, isLocal := range map[string]bool{
		"localhost:1": true, "127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true,
		"http://LOCALHOST:1": true, "dns:///localhost:1": true, "ipv4:127.0.0.1:1,127.0.0.2:1": true,
		"ipv6:[::1]:1": true, "unix:/run/oncegate.sock": true, "[::ffff:127.0.0.1]:1": true,
		"gate:1": false, "10.0.0.1:1": false, "0.0.0.0:1": false, "[::]:1": false, "dns:///gate:1": false,
		"localhost.evil:1": false, "ipv4:127.0.0.1:1,10.0.0.1:1": false,
	} {
		if found, err := parseTarget(address); err != nil || found.isLocal() != isLocal {
			t.Errorf("%s is local: %v, %v", address, found.isLocal(), err)
		}
	}
}

func TestWrongSettings(t *testing.T) {
	withoutEnvironment(t)
	const remote, secure = "gate:1", "https://gate:1"
	for name, test := range map[string]struct {
		option  string
		options []GateOption
	}{
		"an empty address":     {"WithServer", []GateOption{WithServer("")}},
		"an empty token":       {"WithToken", []GateOption{WithToken("")}},
		"two tokens":           {"WithToken", []GateOption{WithToken("planted"), WithTokenFile("f")}},
		"a token with a space": {"WithToken", []GateOption{WithToken("planted two")}},
		"a token in plaintext": {"WithServer", []GateOption{WithServer(remote), WithToken("planted")}},
		"a file in plaintext":  {"WithServer", []GateOption{WithServer(remote), WithTokenFile("f")}},
		"TLS settings without TLS": {"WithTLSCA",
			[]GateOption{WithServer(remote), WithTLSCA("f")}},
		"a name without TLS":        {"WithTLSServerName", []GateOption{WithTLSServerName("n")}},
		"an empty certificate":      {"WithTLSCert", []GateOption{WithServer(secure), WithTLSCert("", "k")}},
		"a certificate without TLS": {"WithTLSCert", []GateOption{WithTLSCert("c", "k")}},
	} {
		_, err := New(test.options...)
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, ErrMisconfigured) || e.Option != test.option {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), "planted") {
			t.Errorf("%s shows the token: %v", name, err)
		}
	}
	for name, options := range map[string][]GateOption{
		"TLS":      {WithServer(secure), WithToken("x"), WithTLSCA("f")},
		"loopback": {WithToken("x")},
		"insecure": {WithServer(remote), WithToken("x"), WithInsecure()},
	} {
		if gate, err := New(options...); err != nil {
			t.Errorf("%s: %v", name, err)
		} else {
			gate.Close()
		}
	}
	t.Setenv("ONCEGATE_TLS_CA", "/ca.pem")
	if _, err := New(); !errors.Is(err, ErrMisconfigured) || !strings.Contains(err.Error(), "ONCEGATE_TLS_CA") {
		t.Errorf("a setting of the environment without effect: %v", err)
	}
}

func TestAGraceThatIsTooShort(t *testing.T) {
	withoutEnvironment(t)
	if _, err := New(TTL(10*time.Second), WithGrace(time.Second)); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestATokenFileIsReadForEachCall(t *testing.T) {
	withoutEnvironment(t)
	path := filepath.Join(t.TempDir(), "token")
	c, err := newConfig([]GateOption{WithTokenFile(path)})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAccess(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.currentToken(); !errors.Is(err, ErrMisconfigured) {
		t.Errorf("without a file: %v", err)
	}
	for _, step := range []struct{ content, token string }{
		{"first\n", "first"}, {"second", "second"}, {"", "second"}, {"two words", "second"}, {"third", "third"},
	} {
		if err := os.WriteFile(path, []byte(step.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if token, err := a.currentToken(); err != nil || token != step.token {
			t.Errorf("%q gives %q: %v", step.content, token, err)
		}
	}
}

func TestACutPayloadKeepsItsNames(t *testing.T) {
	text := strings.Repeat("x", largeBody)
	d := GitHub(nil, []byte(`{"issue": {"number": 5, "body": "`+text+`"}, "id": 12345678901234567890}`))
	if got := string(d.payload.body); got != `{"id":12345678901234567890,"issue":{"body":"","number":5}}` {
		t.Errorf("%.200s", got)
	}
	if form := Slack([]byte("payload=" + text)); len(form.payload.body) != len(text)+len("payload=") {
		t.Error("a form was cut")
	}
}

func TestWhichSlackDeliveriesAreSentAgain(t *testing.T) {
	for body, once := range map[string]bool{
		`{"type": "event_callback"}`:                           false,
		`{"payload": {"type": "event_callback"}}`:              false,
		`{"type": "block_actions"}`:                            true,
		`{"payload": "text"}`:                                  true,
		`command=%2Fdeploy&trigger_id=1`:                       true,
		`{"type": "slash_commands", "payload": {"type": "x"}}`: true,
	} {
		if d := Slack([]byte(body)); d.SentOnce != once {
			t.Errorf("%s: %v", body, d.SentOnce)
		}
	}
}

func TestADetailIsCutBetweenCharacters(t *testing.T) {
	detail := short("x" + strings.Repeat("é", maxDetail))
	if len(detail) != maxDetail-1 || !strings.HasSuffix(detail, "é") {
		t.Errorf("%d bytes, %q", len(detail), detail[len(detail)-3:])
	}
}
