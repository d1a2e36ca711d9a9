package oncegate

import (
	"context"
	"errors"
	"fmt"
)

// An Outcome is what came of a delivery.
type Outcome[T any] struct {
	Answer
	// Value is what the handler returned, if it Ran, or what the run returned that handled a Duplicate. It
	// is the zero value if the event was rejected, or marked.
	Value T
	// ResultErr says why the result of a Duplicate cannot be decoded.
	ResultErr error
}

// Run runs a handler in the turn of a delivery. What it returns is stored, and duplicates get it.
//
// The handler's context ends if the turn is lost, with [ErrLost] as its cause. If it returns [Reject], the
// event is never delivered again, and the outcome is Ran; another error fails the turn, and Run returns it.
//
// An outcome that is to be expected comes without an error. Otherwise the errors are those of [Gate.Begin]
// and [Turn.Succeed].
func Run[T any](
	ctx context.Context, g *Gate, d Delivery, handler func(context.Context, *Turn) (T, error), options ...TurnOption,
) (Outcome[T], error) {
	turn, err := g.Begin(ctx, d, options...)
	return run(turn, err, handler)
}

// Once runs a handler once for each event, and returns its stored result to duplicates. The delivery's
// conversation is ignored. It returns a [NotGrantedError] while another run has the event.
func Once[T any](
	ctx context.Context, g *Gate, d Delivery, handler func(context.Context, *Turn) (T, error), options ...TurnOption,
) (T, error) {
	d.Session, d.Scope = Session{}, EventScope
	turn, refusal := g.Begin(ctx, d, options...)
	out, err := run(turn, refusal, handler)
	switch {
	case err != nil:
		return out.Value, err
	case out.Kind == Duplicate:
		return out.Value, out.ResultErr
	case out.Kind != Ran:
		return out.Value, refusal
	}
	return out.Value, nil
}

func run[T any](turn *Turn, err error, handler func(context.Context, *Turn) (T, error)) (out Outcome[T], _ error) {
	var refused *NotGrantedError
	if errors.As(err, &refused) {
		out.Answer = refused.Answer
		if out.Kind == Duplicate {
			out.ResultErr = refused.Result(&out.Value)
		}
		return out, nil
	}
	if err != nil {
		return out, err
	}
	defer turn.Close() // also if the handler panics
	value, err := handler(turn.Context(), turn)
	if err == nil {
		out.Value = value
		return out, turn.Succeed(value)
	}
	if detail, ok := Rejected(err); ok {
		return out, turn.Reject(detail)
	}
	reason := turn.LostReason()
	turn.Fail(fmt.Sprintf("%T: %v", err, err))
	if reason != "" && (errors.Is(err, context.Canceled) || errors.Is(err, ErrLost)) {
		err = turn.lost(reason, nil)
	}
	return out, err
}
