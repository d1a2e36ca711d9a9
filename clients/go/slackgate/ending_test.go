package slackgate

import (
	"errors"
	"testing"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

func TestEndings(t *testing.T) {
	lost := func(reason string) error { return &oncegate.LostError{Reason: reason} }
	ended := func(outcome string) error { return &oncegate.LostError{Reason: "ENDED", Outcome: outcome} }
	for end, errs := range map[ending][]error{
		handled:   {nil, ended("SUCCEEDED"), ended("REJECTED")},
		uncertain: {lost("CLAIM_LOST"), lost("LEASE_LOST"), lost("EXPIRED"), ended("LOST"), ended("UNKNOWN"), &oncegate.OutcomeUnknownError{}},
		failed:    {lost("MAX_HOLD"), lost("CLOSED"), lost("DENIED"), ended("FAILED"), errors.New("too large")},
	} {
		for _, err := range errs {
			if is := endingOf(err); is != end {
				t.Errorf("%#v is %d, expected %d", err, is, end)
			}
		}
	}
}
