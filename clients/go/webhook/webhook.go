// Package webhook guards handlers of net/http: each delivery is handled once, in its conversation's turn.
//
//	guard := webhook.Guard(gate, oncegate.GitHub)
//	mux.Handle("POST /github", verified(guard(handler)))
//
// Verify the sender's signature before the guard. The handler's turn is oncegate.TurnOf(r.Context()).
//
// A status below 500 ends the turn, and a duplicate gets the same status, headers and body, or the status
// alone if their record is longer than 64 KiB, which takes a body of about 47 KiB. A status of 500 or more,
// or a panic, fails the turn. While another run has the event or its conversation, or the server is
// unavailable, the sender gets 503 with Retry-After. A body of more than 32 MiB gets 413. If the handler has
// ended its turn itself, such as by Reject, its response is sent, and a duplicate does not get it.
//
// A response is sent once the turn has ended; it cannot be flushed before. The handler's context does not
// end with its client's connection, because the response is also for the redelivery.
package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

const (
	// Senders wait 10 s and longer.
	patience              = 5 * time.Second
	waitWithoutRedelivery = 5 * time.Second

	// maxBody is more than GitHub sends.
	maxBody = 32 << 20
)

// A Maker names the delivery of a request, such as [oncegate.GitHub].
type Maker func(header http.Header, body []byte) oncegate.Delivery

// ByBody is a [Maker] that needs the body alone, such as webhook.ByBody(oncegate.Stripe).
func ByBody(delivery func(body []byte) oncegate.Delivery) Maker {
	return func(_ http.Header, body []byte) oncegate.Delivery { return delivery(body) }
}

// Guard returns a middleware that runs a handler in the turn of the request's delivery. A delivery that is
// not sent again waits 5 s for its conversation, unless [oncegate.Wait] says otherwise.
func Guard(gate *oncegate.Gate, delivery Maker, options ...oncegate.TurnOption) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
			if err != nil {
				unread(err).send(w)
				return
			}
			turn, err := begin(r.Context(), gate, delivery(r.Header, body), options)
			if err != nil {
				instead(err, gate.Logger()).send(w)
				return
			}
			defer turn.Close() // also if the handler panics
			handled := newReply()
			request := r.WithContext(turn.Context())
			request.Body = io.NopCloser(bytes.NewReader(body))
			next.ServeHTTP(handled, request)
			handled.end(turn, gate.Logger()).send(w)
		})
	}
}

// begin stops waiting if the client goes. After that the turn does not end with the client's connection.
func begin(
	client context.Context, gate *oncegate.Gate, d oncegate.Delivery, options []oncegate.TurnOption,
) (*oncegate.Turn, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(client))
	stop := context.AfterFunc(client, cancel)
	all := []oncegate.TurnOption{oncegate.Patience(patience)}
	if d.SentOnce {
		all = append(all, oncegate.Wait(waitWithoutRedelivery))
	}
	all = append(append(all, options...), oncegate.ResultCodec(oncegate.JSON{}))
	turn, err := gate.Begin(ctx, d, all...)
	if !stop() && err == nil { // the client has disconnected, which ends the context of the turn
		turn.Fail("its client has disconnected")
		err = context.Canceled
	}
	if err != nil {
		cancel()
		return nil, err
	}
	context.AfterFunc(turn.Context(), cancel)
	return turn, nil
}

// A reply is what a handler has answered, before it is sent.
type reply struct {
	status int
	header http.Header
	body   bytes.Buffer
}

func newReply() *reply { return &reply{header: http.Header{}} }

func (r *reply) Header() http.Header { return r.header }

func (r *reply) WriteHeader(status int) {
	if r.status == 0 && status >= 200 { // the first one that is final counts
		r.status = status
	}
}

func (r *reply) Write(data []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(data)
}

// end ends the turn by what was answered, and returns what to answer then.
func (r *reply) end(turn *oncegate.Turn, log *slog.Logger) *reply {
	r.WriteHeader(http.StatusOK)
	if r.status >= http.StatusInternalServerError {
		turn.Fail(fmt.Sprintf("the handler answered %d", r.status))
		return r
	}
	err := turn.Succeed(recordOf(r))
	var lost *oncegate.LostError
	if errors.As(err, &lost) && lost.Reason == "ENDED" {
		return r // the handler has ended it itself, such as by Reject
	}
	if err != nil {
		return instead(err, log)
	}
	return r
}

func (r *reply) send(w http.ResponseWriter) {
	for name, values := range r.header {
		w.Header()[name] = values
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body.Bytes()) // fails if the client has disconnected
}

func respond(status int, text string) *reply {
	r := newReply()
	r.header.Set("Content-Type", "text/plain; charset=utf-8")
	r.WriteHeader(status)
	r.body.WriteString(text)
	return r
}

func again(after time.Duration) *reply {
	r := respond(http.StatusServiceUnavailable, "retry later")
	seconds := max(1, math.Ceil(after.Seconds()))
	r.header.Set("Retry-After", strconv.Itoa(int(seconds)))
	return r
}

func unread(err error) *reply {
	var tooLong *http.MaxBytesError
	if errors.As(err, &tooLong) {
		return respond(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", tooLong.Limit))
	}
	return respond(http.StatusBadRequest, "the body cannot be read")
}

// instead is what a request is answered without its handler, or in place of what that has answered.
func instead(err error, log *slog.Logger) *reply {
	var refused *oncegate.NotGrantedError
	var e *oncegate.Error
	switch {
	case errors.As(err, &refused) && refused.Kind == oncegate.Duplicate:
		return replayed(refused)
	case errors.Is(err, oncegate.ErrGaveUp), errors.Is(err, oncegate.ErrDropped):
		return respond(http.StatusOK, "")
	case refused != nil:
		return again(refused.RetryAfter)
	case errors.Is(err, oncegate.ErrPayloadMismatch):
		return respond(http.StatusUnprocessableEntity, "the key was used with another payload")
	case errors.Is(err, oncegate.ErrEpicMismatch):
		return respond(http.StatusConflict, "the conversation belongs to other work")
	case errors.Is(err, oncegate.ErrInvalid):
		return respond(http.StatusBadRequest, err.Error())
	case errors.Is(err, oncegate.ErrUnavailable), errors.Is(err, oncegate.ErrOverloaded):
		if errors.As(err, &e) {
			return again(e.RetryAfter)
		}
		return again(0)
	case errors.Is(err, oncegate.ErrLost), errors.Is(err, oncegate.ErrOutcomeUnknown), errors.Is(err, context.Canceled):
		// The redelivery finds out whether the event is handled.
		return again(0)
	}
	log.Error("a webhook's turn failed", "error", err)
	return respond(http.StatusInternalServerError, "internal error")
}
