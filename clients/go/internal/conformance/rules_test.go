package conformance

import (
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

// A rule reports what breaks it.
type rule func(h *history, report func(format string, args ...any))

// rules by their names in planted.json.
var rules = map[string]rule{
	"each-run-has-one-answer":       eachRunHasOneAnswer,
	"one-success":                   oneSuccess,
	"duplicates-replay-the-success": duplicatesReplayTheSuccess,
	"no-entry-once-settled":         noEntryOnceSettled,
	"a-refused-run-has-no-body":     aRefusedRunHasNoBody,
	"given-up-after-failures":       givenUpAfterFailures,
	"the-server-has-the-answers":    theServerHasTheAnswers,
	"fences-rise":                   fencesRise,
	"no-entry-after-the-end":        noEntryAfterTheEnd,
	"no-write-after-the-end":        noWriteAfterTheEnd,
	"a-loss-interrupts":             aLossInterrupts,
	"no-two-bodies":                 noTwoBodies,
	"all-events-settle":             allEventsSettle,
}

// broken is what breaks a rule, each with the rule's name.
func (h *history) broken() []string {
	found := []string{}
	for name, rule := range rules {
		rule(h, func(format string, args ...any) {
			found = append(found, name+": "+fmt.Sprintf(format, args...))
		})
	}
	return found
}

// A run ends with an outcome, or with an error of the library's or of the handler's own.
func eachRunHasOneAnswer(h *history, report func(string, ...any)) {
	byRun := grouped(h.answers, func(a answered) int { return a.run })
	for _, run := range h.planned {
		if count := len(byRun[run]); count != 1 {
			report("run %d has %d answers", run, count)
		}
	}
	for _, a := range h.answers {
		if !isKnown(a.err) {
			report("run %d ended with %v", a.run, a.err)
		}
	}
}

// An event succeeds once at most.
func oneSuccess(h *history, report func(string, ...any)) {
	succeeded := map[string]int{}
	for _, a := range h.answers {
		if !a.isRan() {
			continue
		}
		if before, ok := succeeded[a.event]; ok {
			report("%s succeeded in run %d and %d", a.event, before, a.run)
		}
		succeeded[a.event] = a.run
	}
}

// A duplicate gets the value of the run that succeeded, or whose outcome is unknown.
func duplicatesReplayTheSuccess(h *history, report func(string, ...any)) {
	for event, group := range grouped(h.answers, func(a answered) string { return a.event }) {
		values, possible := map[string]bool{}, map[string]bool{}
		for _, a := range group {
			var unknown *oncegate.OutcomeUnknownError
			if errors.As(a.err, &unknown) {
				value, _ := unknown.Value.(string)
				possible[value] = true
			}
			if a.isRan() {
				possible[a.out.Value] = true
			}
			if a.isRan() || a.isDuplicate() {
				values[a.out.Value] = true
			}
		}
		if len(values) > 1 {
			report("%s has several results: %v", event, values)
		}
		for value := range values {
			if !possible[value] {
				report("%s has a result that no run ended with: %q", event, value)
			}
		}
	}
}

// Once an event is settled, as a caller has been answered, no body of it begins.
func noEntryOnceSettled(h *history, report func(string, ...any)) {
	settled := map[string]time.Time{}
	for _, a := range h.answers {
		if before, ok := settled[a.event]; a.isSettled() && (!ok || a.at.Before(before)) {
			settled[a.event] = a.at
		}
	}
	for _, b := range h.bodies {
		if at, ok := settled[b.event]; ok && b.entered.After(at) {
			report("%s: run %d entered although it was settled", b.event, b.run)
		}
	}
}

// A run that is refused, as a duplicate or otherwise, has no body; a run that succeeded has one.
func aRefusedRunHasNoBody(h *history, report func(string, ...any)) {
	byRun := grouped(h.bodies, func(b *ranBody) int { return b.run })
	for _, a := range h.answers {
		count := len(byRun[a.run])
		if a.isRefused() && count > 0 || a.isRan() && count != 1 || count > 1 {
			report("run %d ended with %s after %d bodies", a.run, a.kind(), count)
		}
	}
}

// An event is given up when all its attempts have failed, or were lost: some before a body.
func givenUpAfterFailures(h *history, report func(string, ...any)) {
	bodies := grouped(h.bodies, func(b *ranBody) string { return b.event })
	for event, group := range grouped(h.answers, func(a answered) string { return a.event }) {
		attempts := grouped(bodies[event], func(b *ranBody) int { return b.attempt })
		failures := 0
		for _, a := range group {
			if a.err == nil && a.out.Kind == oncegate.GaveUp {
				ended := failures + a.out.Attempt - len(attempts)
				if min(ended, a.out.Attempt) < h.maxAttempts {
					report("%s was given up after %d failures", event, failures)
				}
			}
			if a.err != nil {
				failures++
			}
		}
	}
}

// The record of an event has the outcome and the result that its callers got.
func theServerHasTheAnswers(h *history, report func(string, ...any)) {
	for _, a := range h.answers {
		if !a.isSettled() {
			continue
		}
		expected := object{"state": "PROCESSED", "outcome": "SUCCEEDED", "result": any(a.out.Value)}
		if a.out.Kind == oncegate.GaveUp {
			expected["outcome"], expected["result"] = "GAVE_UP", nil
		}
		for key, value := range expected {
			if found := h.records[a.event][key]; !reflect.DeepEqual(found, value) {
				report("%s has the %s %v, run %d was answered %v", a.event, key, found, a.run, value)
			}
		}
	}
}

// The holds of a session are entered in the order of their fences.
func fencesRise(h *history, report func(string, ...any)) {
	for before, after := range h.pairs {
		if after.fence <= before.fence && !h.isForced(before, after) {
			report("%s: run %d entered with fence %d, after run %d with fence %d",
				after.session, after.run, after.fence, before.run, before.fence)
		}
	}
}

// A body does not begin after its trusted end. The margin is for what lies between the library's look at
// the clock and the body's own.
func noEntryAfterTheEnd(h *history, report func(string, ...any)) {
	for _, b := range h.bodies {
		if b.entered.Before(b.trustedAtEntry) {
			continue
		}
		if late := h.awake(b.trustedAtEntry, b.entered); late > h.margin {
			report("%s: run %d entered %v after its trusted end", b.event, b.run, late)
		}
	}
}

// A check that begins after the trusted end does not pass.
func noWriteAfterTheEnd(h *history, report func(string, ...any)) {
	for _, b := range h.bodies {
		for _, w := range b.writes {
			if w.checked.After(w.trusted) {
				report("%s: run %d wrote %v after its trusted end", b.event, b.run, w.checked.Sub(w.trusted))
			}
		}
	}
}

// A body that relies on it is interrupted at its trusted end, or before.
func aLossInterrupts(h *history, report func(string, ...any)) {
	for _, b := range h.bodies {
		if b.checks || b.left.Before(b.trusted) {
			continue
		}
		if late := h.awake(b.trusted, b.left); late > h.margin+settleTime {
			report("%s: run %d went on for %v after its trusted end", b.event, b.run, late)
		}
	}
}

// Within their trusted ends, the bodies of a session do not overlap, unless an operator has released the
// session by force.
func noTwoBodies(h *history, report func(string, ...any)) {
	for before, after := range h.pairs {
		// Until when it may have had effects, if its author calls Check before each.
		stopped := before.left
		if before.trusted.Before(stopped) {
			stopped = before.trusted
		}
		if stopped.After(after.entered) && !h.isForced(before, after) {
			report("%s: run %d entered %v before run %d stopped",
				after.session, after.run, stopped.Sub(after.entered), before.run)
		}
	}
}

// Once the faults have stopped, the last answer for each event settles it.
func allEventsSettle(h *history, report func(string, ...any)) {
	for event, last := range lastAnswers(h) {
		if !last.isSettled() {
			report("%s is not settled; its last answer is %s: %v", event, last.kind(), last.err)
		}
	}
}

func lastAnswers(h *history) map[string]*answered {
	last := map[string]*answered{}
	for i := range h.answers {
		last[h.answers[i].event] = &h.answers[i]
	}
	return last
}
