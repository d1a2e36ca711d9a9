package oncegate

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

const (
	// The server allows 1,024 calls on a connection.
	streamsPerConnection = 900

	callTimeout = 10 * time.Second
	// shortest is the least time for the last attempt of a call.
	shortest = 100 * time.Millisecond
)

// A link is a gate's connections: streams apart from calls, which must not wait behind them.
type link struct {
	access *access
	// ctx ends all calls when the gate is closed.
	ctx context.Context

	mu           sync.Mutex
	certificates *certificates // of the connections that are open
	all          map[*connection]bool
	streams      []*connection
	calls        *connection
	closed       bool
}

// A connection is one channel of gRPC, with the number of its calls and streams.
type connection struct {
	*grpc.ClientConn
	live int
}

func newLink(ctx context.Context, access *access) *link {
	return &link{access: access, ctx: ctx, all: map[*connection]bool{}}
}

func (l *link) dial(found *certificates) (*connection, error) {
	transport := insecure.NewCredentials()
	if found != nil {
		config := found.config.Clone()
		config.ServerName = l.access.serverName
		transport = credentials.NewTLS(config)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		// This library repeats calls itself: it knows until when.
		grpc.WithDisableRetry(),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second,
			},
			MinConnectTimeout: time.Second,
		}),
	}
	if l.access.avoidsProxy {
		options = append(options, grpc.WithNoProxy())
	}
	name := l.access.target.name
	if addresses := l.access.target.addresses; addresses != nil {
		static := manual.NewBuilderWithScheme("oncegate")
		var state resolver.State
		for _, address := range addresses {
			state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
		}
		static.InitialState(state)
		options = append(options, grpc.WithResolvers(static))
		name = "oncegate:///" + addresses[0] // the authority of the calls; a server refuses an empty one
	}
	conn, err := grpc.NewClient(name, options...)
	if err != nil {
		return nil, misconfigured("WithServer", "%v", err)
	}
	return &connection{ClientConn: conn}, nil
}

// acquire returns a connection for one more call or stream, which release takes off: another one if the
// certificates have changed.
func (l *link) acquire(forStream bool) (*connection, *callCredentials, error) {
	credentials, err := l.access.credentials(false)
	if err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil, ErrClosed
	}
	if credentials.certificates != l.certificates {
		l.certificates = credentials.certificates
		l.replace()
	}
	conn := l.roomFor(forStream)
	if conn == nil {
		if conn, err = l.dial(credentials.certificates); err != nil {
			return nil, nil, err
		}
		l.all[conn] = true
		if forStream {
			l.streams = append(l.streams, conn)
		} else {
			l.calls = conn
		}
	}
	conn.live++
	return conn, credentials, nil
}

func (l *link) roomFor(forStream bool) *connection {
	if !forStream {
		return l.calls
	}
	for _, conn := range l.streams {
		if conn.live < streamsPerConnection {
			return conn
		}
	}
	return nil
}

// replace makes what comes use other connections. Those that are in use close after their last call.
func (l *link) replace() {
	l.streams, l.calls = nil, nil
	for conn := range l.all {
		l.closeUnused(conn)
	}
}

// suspect takes a connection that was silent out of use: it may be dead without a notice. One that is still being
// made stays, or none would be in time.
func (l *link) suspect(conn *connection) {
	if conn.GetState() != connectivity.Ready {
		return // gRPC makes it anew by itself if it fails
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls == conn {
		l.calls = nil
	}
	for i, used := range l.streams {
		if used == conn {
			l.streams = append(l.streams[:i:i], l.streams[i+1:]...)
			break
		}
	}
}

// release says that a call or stream has ended.
func (l *link) release(conn *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	conn.live--
	l.closeUnused(conn)
}

func (l *link) closeUnused(conn *connection) {
	used := conn == l.calls || conn.live > 0
	for _, other := range l.streams {
		used = used || conn == other
	}
	if !used && l.all[conn] {
		delete(l.all, conn)
		conn.Close()
	}
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for conn := range l.all {
		conn.Close()
	}
	l.all, l.streams, l.calls = map[*connection]bool{}, nil, nil
}

// call makes one call.
func call[Response any](
	l *link, ctx context.Context, timeout time.Duration,
	do func(context.Context, grpc.ClientConnInterface) (Response, error),
) (Response, error) {
	var none Response
	conn, credentials, err := l.acquire(false)
	if err != nil {
		return none, err
	}
	defer l.release(conn)
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	response, err := do(credentials.attach(limited), conn)
	if err == nil {
		return response, nil
	}
	switch {
	case l.ctx.Err() != nil:
		return none, ErrClosed
	case ctx.Err() != nil:
		return none, ctx.Err()
	}
	failure := readFailure(err)
	if failure.code == codes.DeadlineExceeded {
		l.suspect(conn)
	}
	return none, credentials.judge(failure)
}

// callUntil repeats a call that is safe to repeat until it has an answer. The last attempt is at until. It
// returns the answer, and when the call that got it was sent; or the last failure that says more than that
// the time was over.
func callUntil[Response any](
	l *link, ctx context.Context, until moment, timeout time.Duration,
	do func(context.Context, grpc.ClientConnInterface) (Response, error),
) (response Response, sent moment, err error) {
	var pauses pauses
	var cause *failure
	renewed := false
	for {
		sent = now()
		response, err = call(l, ctx, max(shortest, min(timeout, until-sent)), do)
		failed, ok := err.(*failure)
		if !ok {
			return response, sent, err
		}
		if failed.outdated && !renewed {
			renewed = true
			continue
		}
		left := until - now()
		delay := failed.retryAfter
		if delay == 0 {
			delay = min(pauses.next(), left)
		}
		if failed.code != codes.DeadlineExceeded || cause == nil {
			cause = failed
		}
		if !failed.retryable() || left <= 0 || delay > left {
			return response, sent, cause
		}
		if err := sleep(ctx, l.ctx, delay); err != nil {
			return response, sent, err
		}
	}
}

// sleep ends early if the caller does, or the gate is closed.
func sleep(ctx, gate context.Context, delay time.Duration) error {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-gate.Done():
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}
