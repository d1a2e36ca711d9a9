package oncegate

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"

	pb "github.com/oncegate/oncegate/clients/go/internal/pb/oncegate/v1"
)

const (
	maxDetail = 2048

	// answerTime is how long the stream may take to answer an end before FinishTurn is called.
	answerTime = 2 * time.Second
	// failEffort is for an end that the author does not wait for: that of a failed handler.
	failEffort = 2 * time.Second
	// finishEffort is the least effort for an end whose result counts.
	finishEffort = 5 * time.Second
)

// Succeed ends the turn: the event is handled, and duplicates get the result. Nothing is stored for nil.
// It returns a [LostError] or an [OutcomeUnknownError] with the result as Value, or [ErrInvalid] for a
// result that is too large, which fails the turn.
func (t *Turn) Succeed(result any) error {
	data, resultType, err := encode(t.config.codec, result)
	if err != nil {
		t.Fail(fmt.Sprintf("the result cannot be encoded: %v", err))
		return err
	}
	end := &pb.TurnEnd{Outcome: pb.TurnOutcome_TURN_OUTCOME_SUCCEEDED, Result: data, ResultType: resultType}
	return t.settle(end, result)
}

// Reject ends the turn: the event is refused for good, and never delivered again. Its errors are those of
// Succeed.
func (t *Turn) Reject(detail string) error {
	return t.settle(&pb.TurnEnd{Outcome: pb.TurnOutcome_TURN_OUTCOME_REJECTED, Detail: short(detail)}, nil)
}

// Fail ends the turn: the next delivery gets the event. It does nothing if the turn is over. An end
// that does not reach the server within 2 s is made up for by the TTL.
func (t *Turn) Fail(detail string) {
	if !t.isGuarded() || t.isDetached() {
		t.cancel(nil)
	} else if t.finish("") {
		t.duringEnd(func() { t.giveBack(detail) })
		t.reportEnd("FAILED")
	}
}

// Close fails the turn, unless it is over: for defer.
func (t *Turn) Close() { t.Fail("its holder did not end it") }

// Detach leaves the turn to another process, which has the TTL to [Gate.Adopt] the returned id. The turn
// is over here.
func (t *Turn) Detach() (id string, err error) {
	if err := t.Check(); err != nil || !t.Held() {
		return "", err
	}
	err = t.renew(t.gate.ctx, min(now()+t.left(), now()+t.config.patience))
	var failed *failure
	switch {
	case errors.As(err, &failed) && failed.lost():
		return "", t.lost(failed.reason, failed)
	case err != nil:
		return "", published(err)
	case !t.finish(""):
		return "", t.lost(orElse(t.LostReason(), "ENDED"), nil)
	}
	t.mu.Lock()
	t.detached = true
	t.mu.Unlock()
	t.breakStream()
	t.gate.forget(&t.hold)
	return t.ID(), nil
}

// settle ends the turn for good. value is what the handler returned.
func (t *Turn) settle(end *pb.TurnEnd, value any) error {
	if !t.isGuarded() || t.isDetached() {
		t.cancel(nil) // nobody ends it, or another process does
		return nil
	}
	if !t.finish("") {
		err := t.lost(orElse(t.LostReason(), "ENDED"), nil)
		t.mu.Lock()
		err.Outcome, err.Value = t.outcome, value
		t.mu.Unlock()
		return err
	}
	ttl := t.delivery.TTL
	if t.config.eventTTL > 0 {
		ttl = t.config.eventTTL
	}
	end.Ttl = optionalDuration(ttl)
	outcome, err := outcomeName(end.Outcome), error(nil)
	t.duringEnd(func() {
		if err = t.end(end, max(now()+t.left(), now()+finishEffort)); err != nil {
			outcome, err = t.unsettled(err, value)
		}
	})
	t.reportEnd(outcome)
	return err
}

// unsettled says what it means that an end has failed.
func (t *Turn) unsettled(err error, value any) (outcome string, _ error) {
	var failed *failure
	isFailure := errors.As(err, &failed)
	switch {
	case isFailure && failed.lost():
		lost := t.lost(failed.reason, failed)
		lost.Value = value
		return "LOST", lost
	case !isFailure || failed.retryable(): // else the gate was closed
		return "UNKNOWN", &OutcomeUnknownError{TurnID: t.ID(), Value: value, cause: err}
	}
	// The server refuses the end itself, such as a result that is too large.
	t.giveBack(failed.message)
	return "FAILED", failed.public()
}

// giveBack ends the turn FAILED. Its own failure does not count.
func (t *Turn) giveBack(detail string) {
	end := &pb.TurnEnd{Outcome: pb.TurnOutcome_TURN_OUTCOME_FAILED, Detail: short(detail)}
	if err := t.end(end, now()+failEffort); err != nil {
		t.config.log.Debug("the end of a turn failed", "error", err)
	}
}

// end sends an end over the stream; without an answer there, by FinishTurn until the time given.
func (t *Turn) end(end *pb.TurnEnd, until moment) error {
	defer t.breakStream()
	t.mu.Lock()
	hasStream := t.hangUp != nil
	t.mu.Unlock()
	if hasStream {
		if finished, err := t.endStream(end, until); finished || err != nil {
			return err
		}
	}
	request := &pb.FinishTurnRequest{
		TurnId:     t.ID(),
		Outcome:    end.Outcome,
		Result:     end.Result,
		ResultType: end.ResultType,
		Detail:     end.Detail,
		Ttl:        end.Ttl,
	}
	_, _, err := callUntil(t.gate.link, t.gate.ctx, until, callTimeout,
		func(ctx context.Context, conn grpc.ClientConnInterface) (*pb.FinishTurnResponse, error) {
			return pb.NewTurnServiceClient(conn).FinishTurn(ctx, request)
		})
	return err
}

func (t *Turn) endStream(end *pb.TurnEnd, until moment) (finished bool, err error) {
	left := min(answerTime, max(0, until-now())/2)
	defer ringAt(now()+left, t.stream.cancel)()
	if t.send(&pb.RunTurnRequest{Step: &pb.RunTurnRequest_End{End: end}}) != nil {
		return false, nil
	}
	// Its keeper reads the answer. Once the time is over, the stream is cancelled, which it reads too.
	<-t.answered
	t.mu.Lock()
	defer t.mu.Unlock()
	var failed *failure
	if !t.finished && errors.As(t.endFailure, &failed) && (failed.lost() || !failed.retryable()) {
		return false, failed
	}
	return t.finished, nil
}

// duringEnd lets the gate wait for an end before it closes its connections.
func (t *Turn) duringEnd(work func()) {
	t.gate.track(work)
	t.cancel(nil)
	t.gate.forget(&t.hold)
}

func (t *Turn) isGuarded() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held
}

func (t *Turn) isDetached() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.detached
}

func (t *Turn) reportEnd(outcome string) {
	t.mu.Lock()
	t.outcome = outcome
	t.mu.Unlock()
	if t.config.hooks.OnEnd != nil {
		t.config.hooks.OnEnd(outcome)
	}
}

// short is a detail that the server takes.
func short(detail string) string {
	if len(detail) <= maxDetail {
		return detail
	}
	end := maxDetail
	for !utf8.RuneStart(detail[end]) {
		end--
	}
	return detail[:end]
}
