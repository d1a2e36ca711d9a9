package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

// Between the words of a scenario and those of the library's public API.

// ownError is an error of the handler's own.
type ownError struct{ message string }

func (e *ownError) Error() string { return e.message }

// A date is a type that JSON does not know: the codec keeps it.
type date struct{ time.Time }

type dateCodec struct{}

func (dateCodec) Encode(value any) ([]byte, string, error) {
	return []byte(value.(date).Format(time.DateOnly)), "text/x-date", nil
}

func (dateCodec) Decode(data []byte, _ string, into any) (err error) {
	into.(*date).Time, err = time.Parse(time.DateOnly, string(data))
	return err
}

func millis(written any) time.Duration { return time.Duration(number(written)) * time.Millisecond }

func delivery(step any) oncegate.Delivery {
	given := step.(object)
	for name, make := range platforms {
		if sent, ok := given[name].(object); ok {
			d := make(sent)
			if team := text(given["team"]); team != "" {
				d.Team = team
			}
			return d
		}
	}
	d := oncegate.Delivery{
		Team:    text(given["team"]),
		Event:   text(given["event"]),
		Session: oncegate.Session{ID: text(given["session"])},
		Digest:  unhex(text(given["digest"])),
		TTL:     millis(given["ttl_ms"]),
	}
	if thread, ok := given["thread"].([]any); ok {
		d.Session = oncegate.Thread(d.Team, thread[0].(string), thread[1].(string))
	}
	aliases, _ := given["aliases"].([]any)
	for _, alias := range aliases {
		d.Aliases = append(d.Aliases, text(alias))
	}
	return d
}

var platforms = map[string]func(sent object) oncegate.Delivery{
	"slack":    func(sent object) oncegate.Delivery { return oncegate.Slack(encoded(sent)) },
	"github":   func(sent object) oncegate.Delivery { return oncegate.GitHub(header(sent), body(sent)) },
	"discord":  func(sent object) oncegate.Delivery { return oncegate.Discord(body(sent)) },
	"telegram": func(sent object) oncegate.Delivery { return oncegate.Telegram("", body(sent)) },
	"teams":    func(sent object) oncegate.Delivery { return oncegate.Teams(body(sent)) },
	"stripe":   func(sent object) oncegate.Delivery { return oncegate.Stripe(body(sent)) },
	"standard_webhooks": func(sent object) oncegate.Delivery {
		return oncegate.StandardWebhooks("", header(sent), body(sent))
	},
}

func header(sent object) http.Header {
	header := http.Header{}
	given, _ := sent["headers"].(object)
	for name, value := range given {
		header.Set(name, value.(string))
	}
	return header
}

func body(sent object) []byte {
	if text, ok := sent["body"].(string); ok {
		return []byte(text)
	}
	return encoded(sent["body"])
}

func encoded(value any) []byte {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return data
}

func session(step any) oncegate.Session {
	given := step.(object)
	if thread, ok := given["thread"].([]any); ok {
		return oncegate.Thread(text(given["team"]), thread[0].(string), thread[1].(string))
	}
	return oncegate.Session{Team: text(given["team"]), ID: text(given["id"])}
}

func labels(given any) map[string]string {
	labels := map[string]string{}
	for name, value := range given.(object) {
		labels[name] = value.(string)
	}
	return labels
}

// options are those of a turn or lease; a lease has only some.
func holdOptions(step object) (options []oncegate.HoldOption) {
	for name, make := range map[string]func(given any) oncegate.HoldOption{
		"wait_ms":     func(given any) oncegate.HoldOption { return oncegate.Wait(millis(given)) },
		"ttl_ms":      func(given any) oncegate.HoldOption { return oncegate.TTL(millis(given)) },
		"patience_ms": func(given any) oncegate.HoldOption { return oncegate.Patience(millis(given)) },
		"epic":        func(given any) oncegate.HoldOption { return oncegate.Epic(text(given)) },
		"labels":      func(given any) oncegate.HoldOption { return oncegate.Labels(labels(given)) },
	} {
		if given, ok := step[name]; ok {
			options = append(options, make(given))
		}
	}
	return options
}

func turnOptions(step object) (options []oncegate.TurnOption) {
	for _, option := range holdOptions(step) {
		options = append(options, option)
	}
	for _, option := range gateTurnOptions(step) {
		options = append(options, option)
	}
	return options
}

func leaseOptions(step object) (options []oncegate.LeaseOption) {
	for _, option := range holdOptions(step) {
		options = append(options, option)
	}
	return options
}

func gateTurnOptions(given object) (options []oncegate.GateTurnOption) {
	if attempts, ok := given["max_attempts"]; ok {
		options = append(options, oncegate.MaxAttempts(number(attempts)))
	}
	if then, ok := given["on_unavailable"].(string); ok {
		options = append(options, oncegate.OnUnavailable(oncegate.Unavailability(then)))
	}
	return options
}

func gateOptions(name, server string, given object) []oncegate.GateOption {
	options := []oncegate.GateOption{
		oncegate.WithServer(server),
		oncegate.WithHolder(name),
		oncegate.WithConsumer(text(given["consumer"])),
		oncegate.TTL(millis(given["ttl_ms"])),
	}
	for _, option := range gateTurnOptions(given) {
		options = append(options, option)
	}
	if grace, ok := given["grace_ms"]; ok {
		options = append(options, oncegate.WithGrace(millis(grace)))
	}
	if patience, ok := given["patience_ms"]; ok {
		options = append(options, oncegate.Patience(millis(patience)))
	}
	if given["share_sessions"] == true {
		options = append(options, oncegate.WithSharedSessions())
	}
	return options
}

// bodyOf is what the body of a handler returns, as its step says.
func bodyOf(step object) (any, error) {
	if message, ok := step["error"].(string); ok {
		return nil, &ownError{message}
	}
	if detail, ok := step["reject"].(string); ok {
		return nil, oncegate.Reject(detail)
	}
	return read(step["result"]), nil
}

func outcome(out oncegate.Outcome[any], err error) any {
	if err == nil {
		err = out.ResultErr
	}
	switch {
	case err != nil:
		return failed(err)
	case out.Kind == oncegate.Ran:
		return object{"ran": write(out.Value)}
	}
	return answer(out.Answer, out.Value)
}

func answer(a oncegate.Answer, result any) any {
	retryAfter := a.RetryAfter.Milliseconds()
	switch a.Kind {
	case oncegate.Duplicate:
		return object{"duplicate": object{
			"result": write(result), "outcome": orNull(a.Outcome), "detail": a.Detail}}
	case oncegate.GaveUp:
		return object{"gave_up": object{"attempts": a.Attempt, "detail": a.Detail}}
	case oncegate.InProgress:
		return object{"in_progress": object{
			"holder": a.Holder, "attempt": a.Attempt, "retry_after_ms": retryAfter}}
	case oncegate.Busy:
		return object{"busy": object{
			"holder": a.Holder, "queue_length": a.QueueLength, "retry_after_ms": retryAfter}}
	}
	return object{"dropped": object{}}
}

func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// failed is an error, which may be an expected answer.
func failed(err error) any {
	var refused *oncegate.NotGrantedError
	if errors.As(err, &refused) {
		var result any
		if err := refused.Result(&result); err != nil {
			return object{"error": object{"kind": "unexpected", "message": err.Error()}}
		}
		return answer(refused.Answer, result)
	}
	return object{"error": errorFields(err)}
}

func errorFields(err error) object {
	var lost *oncegate.LostError
	var unknown *oncegate.OutcomeUnknownError
	var e *oncegate.Error
	var own *ownError
	errors.As(err, &e)
	switch {
	case errors.As(err, &lost) && lost.Lease:
		return object{"kind": "lease_lost", "reason": lost.Reason}
	case errors.As(err, &lost):
		return object{"kind": "turn_lost", "reason": lost.Reason, "value": write(lost.Value)}
	case errors.As(err, &unknown):
		return object{"kind": "outcome_unknown", "value": write(unknown.Value)}
	case errors.Is(err, oncegate.ErrClosed):
		return object{"kind": "unavailable"}
	case errors.Is(err, oncegate.ErrUnavailable):
		return object{"kind": "unavailable", "retry_after_ms": e.RetryAfter.Milliseconds()}
	case errors.Is(err, oncegate.ErrOverloaded):
		return object{"kind": "overloaded", "retry_after_ms": e.RetryAfter.Milliseconds()}
	case errors.Is(err, oncegate.ErrEpicMismatch):
		return object{"kind": "epic_mismatch", "bound": e.Bound}
	case errors.Is(err, oncegate.ErrPayloadMismatch):
		return object{"kind": "payload_mismatch"}
	case errors.Is(err, oncegate.ErrInvalid):
		return object{"kind": "invalid", "field": e.Field}
	case errors.Is(err, oncegate.ErrInternal):
		return object{"kind": "internal", "message": err.Error()}
	case errors.As(err, &own):
		return object{"kind": "own", "message": own.message}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return object{"kind": "cancelled"}
	}
	return object{"kind": "unexpected", "message": fmt.Sprintf("%T: %v", err, err)}
}

// A view is a turn or lease.
type view interface {
	Context() context.Context
	Held() bool
	LostReason() string
	Fence() int64
	KeptBy() string
	Waiters() int
	Left() time.Duration
	Check() error
}

func attempt(held view) any {
	if turn, ok := held.(*oncegate.Turn); ok {
		return turn.Attempt()
	}
	return nil
}

func fence(held view) any {
	if held.Fence() == 0 {
		return nil
	}
	return held.Fence()
}

func granted(held view) any {
	return object{"granted": object{"attempt": attempt(held), "fence": fence(held), "held": held.Held()}}
}

func state(held view) any {
	return object{
		"held":        held.Held(),
		"lost":        orNull(held.LostReason()),
		"kept_by":     held.KeptBy(),
		"attempt":     attempt(held),
		"fence":       fence(held),
		"waiters":     held.Waiters(),
		"left_ms":     held.Left().Milliseconds(),
		"interrupted": context.Cause(held.Context()) == oncegate.ErrLost,
	}
}

// manyDeliveries are those of mark_all.
func manyDeliveries(step object) []oncegate.Delivery {
	has := func(name string, index int) bool {
		indexes, _ := step[name].([]any)
		return slices.Contains(indexes, any(float64(index)))
	}
	deliveries := make([]oncegate.Delivery, number(step["count"]))
	for i := range deliveries {
		event := fmt.Sprint(text(step["prefix"]), i)
		switch {
		case has("bad", i):
			event = ""
		case has("repeat", i):
			event = fmt.Sprint(text(step["prefix"]), 0)
		}
		deliveries[i] = oncegate.Delivery{Team: text(step["team"]), Event: event}
		for n := range number(step["aliases"]) {
			alias := fmt.Sprintf("%s:%d:", event, n)
			deliveries[i].Aliases = append(deliveries[i].Aliases, alias+strings.Repeat("x", 512-len(alias)))
		}
	}
	return deliveries
}
