package oncegate

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A failure is a call that ended with an error, in terms of the contract.
type failure struct {
	code       codes.Code
	message    string
	reason     string
	field      string
	metadata   map[string]string
	retryAfter time.Duration
	// There is a newer token or client certificate: it is worth a try at once.
	outdated bool
	// The status of gRPC; nil if the library found the failure itself.
	cause error
}

func (f *failure) Error() string { return fmt.Sprintf("%v: %s", f.code, f.message) }

func (f *failure) Unwrap() error { return f.cause }

func unavailable(message string) *failure {
	return &failure{code: codes.Unavailable, message: message}
}

// readFailure reads a gRPC status and its details.
func readFailure(err error) *failure {
	read := status.Convert(err)
	f := &failure{code: read.Code(), message: orElse(read.Message(), read.Code().String()), cause: err}
	for _, detail := range read.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == "oncegate" {
				f.reason, f.metadata = detail.Reason, detail.Metadata
			}
		case *errdetails.BadRequest:
			if len(detail.FieldViolations) > 0 {
				f.field = detail.FieldViolations[0].Field
			}
		case *errdetails.RetryInfo:
			f.retryAfter = detail.RetryDelay.AsDuration()
		}
	}
	if f.code == codes.Unavailable {
		f.message = explained(f.message)
	}
	return f
}

// What the TLS of Go says of certificates. Otherwise its messages are those of an outage.
var explanations = []struct {
	meaning string
	signs   []string
}{
	{"its certificate is not from a CA of WithTLSCA, not valid for its name, or expired",
		[]string{"failed to verify certificate"}},
	// An alert. With TLS 1.3 it comes after the handshake.
	{"it does not accept the client certificate of WithTLSCert, or needs one",
		[]string{"remote error: tls: "}},
}

func explained(message string) string {
	for _, explanation := range explanations {
		for _, sign := range explanation.signs {
			if strings.Contains(message, sign) {
				return fmt.Sprintf("%s (%s)", explanation.meaning, message)
			}
		}
	}
	return message
}

// lost: the turn or lease has ended.
func (f *failure) lost() bool {
	switch f.reason {
	case "CLAIM_LOST", "LEASE_LOST", "MAX_HOLD":
		return true
	}
	return false
}

// denied: the server does not accept the caller.
func (f *failure) denied() bool {
	return f.code == codes.Unauthenticated || f.code == codes.PermissionDenied
}

// loss says why something that is held is lost by this; it is empty if nothing is.
func (f *failure) loss() string {
	switch {
	case f.lost():
		return f.reason
	case f.denied():
		return "DENIED"
	}
	return ""
}

// retryable: the same request may succeed later. An error without a reason is the transport's.
func (f *failure) retryable() bool {
	switch f.code {
	case codes.ResourceExhausted:
		return f.retryAfter > 0
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	case codes.Internal, codes.Unknown, codes.Aborted:
		return f.reason == ""
	}
	return f.reason == "STREAM_REPLACED"
}

// public is what the author of a bot sees.
func (f *failure) public() error {
	e := &Error{cause: f.cause}
	set := func(kind error, format string, args ...any) error {
		e.kind, e.message = kind, fmt.Sprintf(format, args...)
		return e
	}
	switch {
	case f.code == codes.ResourceExhausted && f.retryAfter > 0:
		e.RetryAfter = f.retryAfter
		return set(ErrOverloaded, "the server is overloaded: %s; retry in %v", f.message, f.retryAfter)
	case f.reason == "EPIC_MISMATCH":
		e.Bound = f.metadata["epic_id"]
		return set(ErrEpicMismatch, "the session is bound to epic %s; use another session, or BindEpic", e.Bound)
	case f.reason == "PAYLOAD_MISMATCH":
		return set(ErrPayloadMismatch, "another payload has the same name; name the two events differently")
	case f.denied():
		e.Reason = orElse(f.reason, map[codes.Code]string{
			codes.Unauthenticated: "UNAUTHENTICATED", codes.PermissionDenied: "PERMISSION_DENIED"}[f.code])
		return set(ErrDenied, "the server denies the call (%s): %s; check the gate's token or certificate, "+
			"and its role and teams in the server's --auth file", e.Reason, f.message)
	case f.retryable():
		e.RetryAfter = f.retryAfter
		if e.RetryAfter == 0 {
			e.RetryAfter = time.Second
		}
		return set(ErrUnavailable, "the server is unavailable: %s; refuse the delivery or retry later", f.message)
	}
	switch f.code {
	case codes.InvalidArgument, codes.OutOfRange, codes.ResourceExhausted, codes.NotFound:
		e.Field = f.field
		return set(ErrInvalid, "%s; fix the caller", f.message)
	}
	return set(ErrInternal, "%v: %s; report it", f.code, f.message)
}

// published is the error that the author of a bot sees.
func published(err error) error {
	var f *failure
	if errors.As(err, &f) {
		return f.public()
	}
	return err
}

// misconfigured says which option cannot be used. Such an error is not repeated.
func misconfigured(option, format string, args ...any) error {
	problem := fmt.Sprintf(format, args...)
	return &Error{
		Option:  option,
		kind:    ErrMisconfigured,
		message: fmt.Sprintf("%s: %s; fix the settings of the gate", option, problem),
	}
}

func invalid(field, format string, args ...any) error {
	return &Error{Field: field, kind: ErrInvalid, message: fmt.Sprintf(format, args...) + "; fix the caller"}
}
