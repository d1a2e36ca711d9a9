package oncegate

import (
	"context"
	"crypto/subtle"
	"os"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

// accessOptions is what the author has set; the environment has the rest. Nil is unset.
type accessOptions struct {
	server        *string
	tlsCA         *string
	tlsCert       *string
	tlsKey        *string
	tlsServerName *string
	token         *string
	tokenFile     *string
	insecure      bool
	environment   func(name string) string
}

// WithTLSCA sets a PEM file: the CAs that the server's certificate may come from. Default:
// ONCEGATE_TLS_CA, else the CAs of the system.
func WithTLSCA(file string) GateOption {
	return gateOption(func(c *config) { c.access.tlsCA = &file })
}

// WithTLSCert sets PEM files: the client's certificate, with its intermediates, and its private key, not
// encrypted. Default: ONCEGATE_CLIENT_CERT and ONCEGATE_CLIENT_KEY.
func WithTLSCert(certFile, keyFile string) GateOption {
	return gateOption(func(c *config) { c.access.tlsCert, c.access.tlsKey = &certFile, &keyFile })
}

// WithTLSServerName sets the name that the server's certificate must be valid for, instead of that of the
// address. Default: ONCEGATE_TLS_SERVER_NAME. For tests.
func WithTLSServerName(name string) GateOption {
	return gateOption(func(c *config) { c.access.tlsServerName = &name })
}

// WithToken sets a token, which is sent with each call.
func WithToken(token string) GateOption {
	return gateOption(func(c *config) { c.access.token = &token })
}

// WithTokenFile sets a file with the token, which is read for each call. Default: ONCEGATE_TOKEN_FILE.
func WithTokenFile(file string) GateOption {
	return gateOption(func(c *config) { c.access.tokenFile = &file })
}

// WithInsecure allows a token in plaintext to a host that is not this one.
func WithInsecure() GateOption { return gateOption(func(c *config) { c.access.insecure = true }) }

// An access is where the server is, and how a gate proves who it is. The settings are read once, their
// files again and again, so that what they hold can be exchanged while the process runs.
type access struct {
	target     target
	serverName string
	// avoidsProxy: an HTTP proxy of the environment would carry the token to another host.
	avoidsProxy bool
	tls         *rotation

	mu          sync.Mutex
	token       string
	tokenFile   *file
	tokenOutage outage
}

func newAccess(c *config) (*access, error) {
	options := &c.access
	if options.environment == nil {
		options.environment = os.Getenv
	}
	a := &access{tokenOutage: outage{log: c.log, then: "the token that was read before stays in use"}}
	address, _, err := options.setting("WithServer", options.server, "ONCEGATE_SERVER")
	if err != nil {
		return nil, err
	}
	if a.target, err = parseTarget(orElse(address, defaultServer)); err != nil {
		return nil, err
	}
	if err := a.readTLS(c); err != nil {
		return nil, err
	}
	if err := a.readTokenSetting(options); err != nil {
		return nil, err
	}
	hasToken, isLocal := a.token != "" || a.tokenFile != nil, a.target.isLocal()
	if hasToken && !a.target.tls && !isLocal && !options.insecure {
		return nil, misconfigured("WithServer", "a token must not be sent in plaintext to %s; "+
			"use https://, or set WithInsecure", a.target.name)
	}
	a.avoidsProxy = hasToken && !a.target.tls && isLocal
	return a, nil
}

// setting is what the option says, else the environment. An empty option is a mistake, such as a variable
// that is not set.
func (o *accessOptions) setting(option string, given *string, variable string) (value, source string, err error) {
	if given == nil {
		return o.environment(variable), variable, nil
	}
	if *given == "" {
		return "", "", misconfigured(option, "it is empty; set it, or leave it out")
	}
	return *given, "the option", nil
}

func (a *access) readTLS(c *config) error {
	options := &c.access
	settings := []struct {
		option, variable string
		given            *string
		value            string
	}{
		{option: "WithTLSCA", variable: "ONCEGATE_TLS_CA", given: options.tlsCA},
		{option: "WithTLSCert", variable: "ONCEGATE_CLIENT_CERT", given: options.tlsCert},
		{option: "WithTLSCert", variable: "ONCEGATE_CLIENT_KEY", given: options.tlsKey},
		{option: "WithTLSServerName", variable: "ONCEGATE_TLS_SERVER_NAME", given: options.tlsServerName},
	}
	for i := range settings {
		s := &settings[i]
		value, source, err := options.setting(s.option, s.given, s.variable)
		if err != nil {
			return err
		}
		// A setting without effect is a mistake, also one of the environment of a whole pod.
		if value != "" && !a.target.tls {
			return misconfigured(s.option, "%s needs TLS, and the server %s has none; use https://HOST:PORT",
				source, a.target.name)
		}
		s.value = value
	}
	ca, cert, key := settings[0].value, settings[1].value, settings[2].value
	if (cert == "") != (key == "") {
		return misconfigured("WithTLSCert", "a client certificate needs both its certificate and its key")
	}
	a.serverName = settings[3].value
	if a.target.tls {
		a.tls = newRotation(c.log, ca, cert, key)
	}
	return nil
}

func (a *access) readTokenSetting(options *accessOptions) error {
	if options.token == nil {
		path, _, err := options.setting("WithTokenFile", options.tokenFile, "ONCEGATE_TOKEN_FILE")
		if err == nil && path != "" {
			a.tokenFile = newFile("WithTokenFile", path)
		}
		return err
	}
	if options.tokenFile != nil {
		return misconfigured("WithToken", "set either WithToken or WithTokenFile")
	}
	if *options.token == "" {
		return misconfigured("WithToken", "it is empty; set it, or leave it out")
	}
	a.token = strings.TrimSpace(*options.token)
	return checkToken("WithToken", a.token)
}

func checkToken(option, token string) error {
	fit := 0 < len(token) && len(token) <= 8*1024
	for _, char := range []byte(token) {
		fit = fit && '!' <= char && char <= '~'
	}
	if !fit {
		return misconfigured(option, "this is not one token, of at most 8 KiB")
	}
	return nil
}

// currentToken is the token for the next call. While its file cannot be used, the last one stays in use.
func (a *access) currentToken() (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tokenFile == nil {
		return a.token, nil
	}
	content, err := a.tokenFile.read()
	token := string(content)
	if err == nil {
		err = checkToken("WithTokenFile", token)
	}
	switch {
	case err == nil:
		a.token = token
		a.tokenOutage.over()
	case a.token == "":
		return "", err
	default:
		a.tokenOutage.warn(err)
	}
	return a.token, nil
}

// credentials are for the next call or stream. atOnce: after a look at the files of the certificates.
func (a *access) credentials(atOnce bool) (*callCredentials, error) {
	token, err := a.currentToken()
	if err != nil {
		return nil, err
	}
	c := &callCredentials{access: a, token: token}
	if a.tls != nil {
		c.certificates, err = a.tls.current(atOnce)
	}
	return c, err
}

// callCredentials is what one call or stream proves itself by.
type callCredentials struct {
	access       *access
	token        string
	certificates *certificates
}

// attach returns a context whose call sends the token.
func (c *callCredentials) attach(ctx context.Context) context.Context {
	if c.token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
}

// judge says what a failure means. UNAUTHENTICATED is final only with the newest token and client
// certificate: with older ones the call is worth another try.
func (c *callCredentials) judge(f *failure) *failure {
	if c.access.tls != nil && f.reason == "" &&
		(f.code == codes.Unavailable || f.code == codes.DeadlineExceeded) {
		c.access.tls.lookSoon() // the server may not accept the old ones any more
	}
	if f.code != codes.Unauthenticated {
		return f
	}
	newest, err := c.access.credentials(true)
	if err != nil || newest.sameIdentity(c) {
		return f
	}
	replaced := unavailable("the token or client certificate was replaced")
	replaced.outdated, replaced.cause = true, f.cause
	return replaced
}

func (c *callCredentials) sameIdentity(other *callCredentials) bool {
	return subtle.ConstantTimeCompare([]byte(c.token), []byte(other.token)) == 1 &&
		c.certificates.sameClient(other.certificates)
}
