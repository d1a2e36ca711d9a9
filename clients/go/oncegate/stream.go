package oncegate

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
)

// A stream of messages. It is read by one goroutine, and cancelled by any.
type stream[M any] struct {
	link        *link
	conn        *connection
	credentials *callCredentials
	recv        func() (M, error)
	cancel      context.CancelFunc
	silent      atomic.Bool // it was cancelled because nothing came in time
}

// openStream opens a stream by start, which sends the first message and returns how to receive. ctx ends
// the stream.
func openStream[M any](
	l *link, ctx context.Context, until moment,
	start func(context.Context, grpc.ClientConnInterface) (recv func() (M, error), err error),
) (*stream[M], error) {
	conn, credentials, err := l.acquire(true)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &stream[M]{link: l, conn: conn, credentials: credentials}
	s.cancel = sync.OnceFunc(func() {
		cancel()
		l.release(conn)
	})
	context.AfterFunc(ctx, s.cancel)
	stop := ringAt(until, s.timeOut)
	defer stop()
	s.recv, err = start(credentials.attach(ctx), conn)
	if err != nil {
		return nil, s.ended(err)
	}
	return s, nil
}

// read returns the next message. If none comes in time, it cancels the stream and fails.
func (s *stream[M]) read(until moment) (M, error) {
	stop := ringAt(until, s.timeOut)
	message, err := s.recv()
	stop()
	if err != nil {
		return message, s.ended(err)
	}
	return message, nil
}

func (s *stream[M]) timeOut() {
	s.silent.Store(true)
	s.link.suspect(s.conn)
	s.cancel()
}

func (s *stream[M]) ended(err error) error {
	s.cancel()
	switch {
	case s.silent.Load():
		return unavailable("the server did not answer in time")
	case errors.Is(err, io.EOF):
		return unavailable("the server ended the stream")
	}
	return s.credentials.judge(readFailure(err))
}
