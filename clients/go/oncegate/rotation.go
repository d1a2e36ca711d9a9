package oncegate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	maxFile = 1024 * 1024

	// readTime is how long a read may take: a file system of the network may not answer at all.
	readTime = 2 * time.Second
)

// How long after a look at the files of the certificates another one follows, while calls are made; and
// after a connection has failed.
const (
	lookAgain = 10 * time.Second
	lookSoon  = time.Second
)

// certificates is what the files hold.
type certificates struct {
	ca, cert, key []byte
	config        *tls.Config
}

func (c *certificates) equal(other *certificates) bool {
	return c.sameClient(other) && bytes.Equal(c.ca, other.ca)
}

func (c *certificates) sameClient(other *certificates) bool {
	if c == nil || other == nil {
		return c == other
	}
	return bytes.Equal(c.cert, other.cert) && bytes.Equal(c.key, other.key)
}

// A rotation has the certificates that a gate uses.
type rotation struct {
	ca, cert, key *file

	mu      sync.Mutex
	used    *certificates
	looked  moment
	hurried bool
	outage  outage
}

func newRotation(log *slog.Logger, ca, cert, key string) *rotation {
	r := &rotation{outage: outage{log: log, then: "the certificates that were read before stay in use"}}
	if ca != "" {
		r.ca = newFile("WithTLSCA", ca)
	}
	if cert != "" {
		r.cert, r.key = newFile("WithTLSCert", cert), newFile("WithTLSCert", key)
	}
	return r
}

// current is for the next call. Files that cannot be used now leave the last ones in use.
func (r *rotation) current(atOnce bool) (*certificates, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pause := lookAgain
	if r.hurried {
		pause = lookSoon
	}
	if r.used != nil && !atOnce && now()-r.looked < pause {
		return r.used, nil
	}
	r.looked, r.hurried = now(), false
	found, err := r.read()
	switch {
	case err == nil:
		r.outage.over()
		r.used = found
	case r.used == nil:
		return nil, err
	default:
		r.outage.warn(err)
	}
	return r.used, nil
}

// lookSoon makes the next look come earlier.
func (r *rotation) lookSoon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hurried = true
}

func (r *rotation) read() (*certificates, error) {
	found := &certificates{config: &tls.Config{MinVersion: tls.VersionTLS12}}
	for _, part := range []struct {
		file *file
		into *[]byte
	}{{r.ca, &found.ca}, {r.cert, &found.cert}, {r.key, &found.key}} {
		if part.file == nil {
			continue
		}
		content, err := part.file.read()
		if err != nil {
			return nil, err
		}
		*part.into = content
	}
	if r.used != nil && found.equal(r.used) {
		return r.used, nil
	}
	if r.ca != nil {
		found.config.RootCAs = x509.NewCertPool()
		if !found.config.RootCAs.AppendCertsFromPEM(found.ca) {
			return nil, misconfigured("WithTLSCA", "%s holds no certificate in PEM", r.ca.path)
		}
	}
	if r.cert != nil {
		pair, err := tls.X509KeyPair(found.cert, found.key)
		if err != nil {
			return nil, misconfigured("WithTLSCert", "%s and %s are not a certificate and its key: %v",
				r.cert.path, r.key.path, err)
		}
		// A server whose list of CAs lacks this one's would otherwise get none, and not say why.
		found.config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &pair, nil
		}
	}
	return found, nil
}

// A file that an option names. It is read by one goroutine at a time.
type file struct {
	option, path string
	load         func(path string) ([]byte, error)
	// loading is a read that was not done in time; nil without one.
	loading chan loaded
}

type loaded struct {
	content []byte
	err     error
}

func newFile(option, path string) *file { return &file{option: option, path: path, load: readRegular} }

// read returns what it holds, without white space around it. Never empty.
func (f *file) read() ([]byte, error) {
	content, err := f.inTime()
	content = bytes.TrimSpace(content)
	if err == nil && len(content) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return nil, misconfigured(f.option, "cannot use the file %s: %v", f.path, err)
	}
	return content, nil
}

// inTime waits for readTime. As long as a read hangs, there is no other one, and its file cannot be used.
func (f *file) inTime() ([]byte, error) {
	if f.loading != nil {
		select {
		case <-f.loading: // what it holds now is read below
		default:
			return nil, errors.New("it cannot be read in time")
		}
	}
	f.loading = make(chan loaded, 1)
	go func(done chan<- loaded) {
		content, err := f.load(f.path)
		done <- loaded{content, err}
	}(f.loading)
	timer := time.NewTimer(readTime)
	defer timer.Stop()
	select {
	case done := <-f.loading:
		f.loading = nil
		return done.content, done.err
	case <-timer.C:
		return nil, errors.New("it cannot be read in time")
	}
}

func readRegular(path string) ([]byte, error) {
	// A pipe without a writer would keep this waiting.
	opened, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	info, err := opened.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	content, err := io.ReadAll(io.LimitReader(opened, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = errors.New("it is larger than 1 MiB")
	}
	return content, err
}

// An outage warns of files that cannot be used: once for each option, until they can be used again.
type outage struct {
	log    *slog.Logger
	then   string
	warned map[string]bool
}

func (o *outage) warn(err error) {
	var e *Error
	if errors.As(err, &e) && !o.warned[e.Option] {
		if o.warned == nil {
			o.warned = map[string]bool{}
		}
		o.warned[e.Option] = true
		o.log.Warn(fmt.Sprintf("%v; %s", err, o.then))
	}
}

func (o *outage) over() { clear(o.warned) }
