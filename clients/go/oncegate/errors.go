package oncegate

import (
	"errors"
	"fmt"
	"time"
)

// The kinds of errors, for [errors.Is]. [errors.As] with [*NotGrantedError], [*LostError],
// [*OutcomeUnknownError] or [*Error] gets the details. An error that a gRPC status caused wraps it.
var (
	// ErrNotGranted: there is no turn. Each of the following five is one, too.
	ErrNotGranted = errors.New("not granted")
	// ErrDuplicate: the event has been handled; acknowledge it.
	ErrDuplicate = errors.New("duplicate")
	// ErrGaveUp: all attempts failed, and no run has handled the event; acknowledge it, and alert a person.
	ErrGaveUp = errors.New("gave up")
	// ErrInProgress: another run handles the event; refuse the delivery if its sender redelivers.
	ErrInProgress = errors.New("in progress")
	// ErrBusy: another turn has the conversation, and the wait is over. The event is unchanged.
	ErrBusy = errors.New("busy")
	// ErrDropped: the server is unavailable, and [OnUnavailable] is [Drop].
	ErrDropped = errors.New("dropped")

	// ErrLost is the cause of the context of a turn or lease that ended without its holder: stop working.
	ErrLost = errors.New("the turn or lease was lost; stop working, another run may have it")
	// ErrOutcomeUnknown: the end of a turn was sent, and no answer came. [Gate.Seen] reports later.
	ErrOutcomeUnknown = errors.New("outcome unknown")

	// ErrUnavailable: no server answered within the patience. Nothing is held, as far as is known.
	ErrUnavailable = errors.New("unavailable")
	// ErrClosed: the gate was closed. It is also ErrUnavailable, but asking again does not help.
	ErrClosed = fmt.Errorf("the gate is closed: %w", ErrUnavailable)
	// ErrOverloaded: a limit of the server was reached, and the patience is over.
	ErrOverloaded = errors.New("overloaded")
	// ErrDenied: the server does not know the caller, or the caller may not do this.
	ErrDenied = errors.New("denied")
	// ErrMisconfigured: an option of the gate, or the file that it names, cannot be used.
	ErrMisconfigured = errors.New("misconfigured")
	// ErrEpicMismatch: the session is bound to another epic.
	ErrEpicMismatch = errors.New("epic mismatch")
	// ErrPayloadMismatch: the event is on record with another digest.
	ErrPayloadMismatch = errors.New("payload mismatch")
	// ErrInvalid: the request breaks a rule of the contract; fix the caller.
	ErrInvalid = errors.New("invalid")
	// ErrInternal: a fault of the server, or an answer that this library does not know; report it.
	ErrInternal = errors.New("internal")
)

// Kind is the outcome of a request for a turn.
type Kind int

// The kinds of outcomes.
const (
	// Ran: the handler ran, and this is what it returned, or it rejected the event.
	Ran Kind = iota
	// Duplicate: the event has been handled; acknowledge it.
	Duplicate
	// GaveUp: all attempts failed, and no run has handled the event.
	GaveUp
	// InProgress: another run handles the event.
	InProgress
	// Busy: another turn has the conversation, and the wait is over.
	Busy
	// Dropped: the server is unavailable, and [OnUnavailable] is [Drop].
	Dropped
)

var kinds = [...]error{errors.New("ran"), ErrDuplicate, ErrGaveUp, ErrInProgress, ErrBusy, ErrDropped}

func (k Kind) String() string { return kinds[k].Error() }

// Answer says whether there is a turn, and if not, why.
type Answer struct {
	Kind Kind
	// Outcome of a Duplicate: "SUCCEEDED" or "REJECTED"; empty if it was only marked.
	Outcome string
	// Detail says why a Duplicate was rejected, or how the latest attempt of a GaveUp failed.
	Detail string
	// Attempt of the run that has an event InProgress; the number of attempts of a GaveUp.
	Attempt int
	// Holder has the event, if InProgress, or the conversation, if Busy.
	Holder string
	// QueueLength is how many callers wait for the conversation, if Busy.
	QueueLength int
	// RetryAfter says when to ask again, if InProgress or Busy.
	RetryAfter time.Duration
}

// NotGrantedError says why there is no turn.
type NotGrantedError struct {
	Answer
	result stored
	cause  error
}

// Result stores what the run that handled a duplicate returned in what into points to. It leaves that as
// it is if nothing was returned.
func (e *NotGrantedError) Result(into any) error { return e.result.decode(into) }

func (e *NotGrantedError) Error() string {
	switch e.Kind {
	case Duplicate:
		return "the event has been handled; acknowledge it"
	case GaveUp:
		return fmt.Sprintf("the event was given up after %d attempts: %s", e.Attempt, orElse(e.Detail, "no detail"))
	case InProgress:
		return fmt.Sprintf("%s handles the event; ask again in %v", e.Holder, e.RetryAfter)
	case Busy:
		return fmt.Sprintf("%s has the conversation, %d waiting; ask again in %v",
			orElse(e.Holder, "the next in the queue"), e.QueueLength, e.RetryAfter)
	default:
		return "the server is unavailable, and the event is dropped, as its author chose"
	}
}

// Is reports whether the target is [ErrNotGranted], or the error of its kind.
func (e *NotGrantedError) Is(target error) bool {
	return target == ErrNotGranted || target == kinds[e.Kind]
}

func (e *NotGrantedError) Unwrap() error { return e.cause }

// LostError: a turn or lease ended without its holder. It is [ErrLost].
type LostError struct {
	// Lease: it was a lease, and not a turn.
	Lease bool
	// Reason is CLAIM_LOST, LEASE_LOST or MAX_HOLD, as the server says; DENIED, EXPIRED (the trusted end has
	// passed), CLOSED (the gate was closed) or ENDED (the holder had ended it before).
	Reason string
	// Outcome of the first end, if a second one returns ENDED: SUCCEEDED, REJECTED, FAILED, LOST or UNKNOWN.
	Outcome string
	// Value is what the handler returned all the same. It was not stored.
	Value any
	cause error
}

func (e *LostError) Error() string {
	what := "turn"
	if e.Lease {
		what = "lease"
	}
	if e.Reason == "ENDED" {
		return fmt.Sprintf("the %s has ended; write before its end, and end it once", what)
	}
	return fmt.Sprintf("the %s was lost (%s); stop working, another run may have it", what, e.Reason)
}

// Is reports whether the target is [ErrLost].
func (e *LostError) Is(target error) bool { return target == ErrLost }

func (e *LostError) Unwrap() error { return e.cause }

// OutcomeUnknownError: the end of a turn was sent, and no answer came. It is [ErrOutcomeUnknown].
type OutcomeUnknownError struct {
	TurnID string
	// Value is what the handler returned.
	Value any
	cause error
}

func (e *OutcomeUnknownError) Error() string {
	return "the server did not confirm the end of the turn; refuse the delivery, so that its redelivery finds out"
}

// Is reports whether the target is [ErrOutcomeUnknown].
func (e *OutcomeUnknownError) Is(target error) bool { return target == ErrOutcomeUnknown }

func (e *OutcomeUnknownError) Unwrap() error { return e.cause }

// Error is any other error of a call. [errors.Is] reports its kind.
type Error struct {
	// RetryAfter says when to try again, for [ErrUnavailable] and [ErrOverloaded].
	RetryAfter time.Duration
	// Reason of [ErrDenied]: TEAM_DENIED, ROLE_DENIED or another reason of the contract; without one,
	// UNAUTHENTICATED or PERMISSION_DENIED.
	Reason string
	// Field of [ErrInvalid]: its path; empty if the message has no field.
	Field string
	// Option of [ErrMisconfigured].
	Option string
	// Bound is the epic that the session is bound to, for [ErrEpicMismatch].
	Bound string

	kind    error
	message string
	cause   error
}

func (e *Error) Error() string { return e.message }

// Is reports whether the target is the error of its kind.
func (e *Error) Is(target error) bool { return target == e.kind }

func (e *Error) Unwrap() error { return e.cause }

// Reject is returned by a handler: no retry can succeed. The event ends REJECTED, with this detail.
func Reject(detail string) error { return &rejection{detail} }

// Rejected returns the detail of an error that [Reject] made, for middleware.
func Rejected(err error) (detail string, ok bool) {
	var rejected *rejection
	if errors.As(err, &rejected) {
		return rejected.detail, true
	}
	return "", false
}

type rejection struct{ detail string }

func (r *rejection) Error() string { return "rejected: " + r.detail }

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}
