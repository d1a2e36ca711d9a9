package slackgate_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/slack-go/slack/socketmode"

	"github.com/oncegate/oncegate/clients/go/oncegate"
	"github.com/oncegate/oncegate/clients/go/oncegatetest"
	"github.com/oncegate/oncegate/clients/go/slackgate"
)

func (b *bot) handleSocket(ctx context.Context, _ *socketmode.Event, _ *socketmode.Client) error {
	return b.work(ctx)
}

func (s *fakeSlack) expect(what string, expected ...string) {
	s.t.Helper()
	if acknowledged := s.acknowledged(); !slices.Equal(acknowledged, expected) {
		s.t.Errorf("%s: %v are acknowledged, expected %v", what, acknowledged, expected)
	}
}

func TestASocketIsAcknowledgedAfterTheHandler(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	b := newBot()
	s := connect(t, slackgate.New(gate), b.handleSocket)
	event := mention("Ev1")
	s.sendEvent("e1", event, 0)
	<-b.entered
	s.sendEvent("e2", event, 1)
	s.done("e2")
	s.expect("while the first runs")
	b.leave <- nil
	s.done("e1")
	s.expect("after the handler", "e1")
	s.sendEvent("e3", event, 2)
	s.done("e3")
	s.expect("a duplicate", "e3")
	b.ran(t, 1)
}

func TestAFailureIsNotAcknowledged(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	b := newBot()
	s := connect(t, slackgate.New(gate), b.handleSocket)
	event := mention("Ev1")
	for envelope, result := range map[string]error{"error": errors.New("no disk"), "panic": errPanic} {
		b.leave <- result
		s.sendEvent(envelope, event, 0)
		s.done(envelope)
		s.expect(envelope)
	}
	b.leave <- oncegate.Reject("no topic")
	s.sendEvent("rejected", event, 1)
	s.done("rejected")
	s.expect("rejected", "rejected")
	b.ran(t, 3)
}

func TestTheLastRetryOverASocket(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	b := newBot()
	guard := slackgate.New(gate)
	s := connect(t, guard, b.handleSocket)
	event := mention("Ev1")
	s.sendEvent("e1", event, 0)
	<-b.entered
	s.sendEvent("e2", event, 3) // Slack does not deliver it again
	s.done("e2")
	s.expect("the last retry", "e2")
	b.leave <- errors.New("no disk")
	s.done("e1")
	<-b.entered // what e2 waits for
	b.leave <- nil
	b.join(t, guard)
	s.expect("the one that failed")
	b.ran(t, 2)
}

func TestABusyThreadOverASocket(t *testing.T) {
	_, server := oncegatetest.Start(t)
	gate, queued := queueing(server)
	b := newBot()
	told := make(chan oncegate.Delivery, 10)
	guard := slackgate.New(gate, slackgate.OnBusy(func(_ context.Context, d oncegate.Delivery) {
		told <- d
		panic("a bug of OnBusy")
	}))
	s := connect(t, guard, b.handleSocket)
	s.sendEvent("e1", mention("Ev1"), 0)
	<-b.entered
	s.sendEvent("e2", mention("Ev2"), 0)
	s.done("e2")
	<-queued
	s.click("e3", "row 1")
	s.done("e3")
	<-told
	<-queued
	s.expect("those that wait", "e2", "e3")
	for range 3 {
		b.leave <- nil
	}
	s.done("e1")
	b.join(t, guard)
	s.expect("the first", "e1")
	b.ran(t, 3)
	if len(told) != 0 {
		t.Error("OnBusy is called for an event, or twice")
	}
}

func TestASecondClickIsAcknowledged(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	b := newBot()
	guard := slackgate.New(gate, slackgate.AckFirst())
	s := connect(t, guard, b.handleSocket)
	s.click("e1", "row 1")
	s.done("e1")
	s.expect("the first, before its handler has ended", "e1")
	s.click("e2", "row 1")
	s.done("e2")
	s.expect("the second, while the first runs", "e2")
	b.leave <- nil
	b.join(t, guard)
	b.ran(t, 1)
}

func TestASocketWithoutTheServer(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	server.Kill()
	b := newBot()
	guard := slackgate.New(gate)
	s := connect(t, guard, b.handleSocket)
	s.sendEvent("e1", mention("Ev1"), 0)
	s.done("e1")
	s.expect("unavailable")
	s.click("e2", "row 1")
	s.done("e2")
	s.expect("a click, which Slack does not repeat: it shows that it failed")
	b.ran(t, 0)
}

func TestAnAcknowledgementOverTheNextConnection(t *testing.T) {
	gate, _ := oncegatetest.Start(t)
	b := newBot()
	s := connect(t, slackgate.New(gate), b.handleSocket)
	s.sendEvent("e1", mention("Ev1"), 0)
	<-b.entered
	_ = s.conn.Close()
	s.accept()
	b.leave <- nil
	s.done("e1")
	s.expect("over the next connection", "e1")
}

func TestAClientsOwnEvents(t *testing.T) {
	_, server := oncegatetest.Start(t)
	gate, log := logging(server)
	guarded := slackgate.New(gate).Socket(func(context.Context, *socketmode.Event, *socketmode.Client) error {
		panic("a bug of the handler")
	})
	guarded(&socketmode.Event{Type: socketmode.EventTypeConnected}, nil)
	log.has(t, "a bug of the handler", "socket_test.go")
}
