package oncegatetest_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oncegate/oncegate/clients/go/oncegate"
	"github.com/oncegate/oncegate/clients/go/oncegatetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var delivery = oncegate.Delivery{Team: "T1", Event: "E1", Session: oncegate.Session{ID: "S1"}}

func begin(t *testing.T, gate *oncegate.Gate) *oncegate.Turn {
	t.Helper()
	turn, err := gate.Begin(t.Context(), delivery)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(turn.Close)
	return turn
}

func TestTurnsAreSeenAndLost(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	turn := begin(t, gate)
	turns := server.Turns("T1")
	if len(turns) != 1 || turns[0].Event != "E1" || turns[0].Attempt != 1 || len(server.Turns("T2")) != 0 {
		t.Errorf("the turns are %v", turns)
	}
	server.Lose(oncegate.Session{Team: "T1", ID: "S1"})
	select {
	case <-turn.Context().Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the loss is not reported")
	}
	if context.Cause(turn.Context()) != oncegate.ErrLost || turn.LostReason() != "LEASE_LOST" {
		t.Errorf("lost by %v: %s", context.Cause(turn.Context()), turn.LostReason())
	}
	var lost *oncegate.LostError
	if err := turn.Succeed("late"); !errors.As(err, &lost) || lost.Value != "late" {
		t.Errorf("its end is %v", err)
	}
}

func TestWaitersAreSeen(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	turn := begin(t, gate)
	waited := make(chan error)
	go func() {
		second, err := gate.Begin(context.Background(), oncegate.Delivery{
			Team: "T1", Event: "E2", Session: oncegate.Session{ID: "S1"},
		}, oncegate.Wait(30*time.Second))
		if err == nil {
			err = second.Succeed(nil)
		}
		waited <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); server.Waiting("T1") != 1; {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := turn.Succeed(nil); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

func TestTurnsOutliveTheServer(t *testing.T) {
	gate, server := oncegatetest.Start(t)
	for _, replace := range []func(){
		server.Restart,
		func() { server.Mute(); server.Restart() },
		func() { server.Drain(); server.Start() },
	} {
		turn := begin(t, gate)
		replace()
		if err := turn.Succeed(nil); err != nil {
			t.Errorf("%v\n%s", err, server.Log())
		}
		delivery.Event += "+"
	}
	if strings.Count(server.Log(), `"stopped"`) != 1 { // which only a drain comes to
		t.Errorf("the server was not drained:\n%s", server.Log())
	}
}
