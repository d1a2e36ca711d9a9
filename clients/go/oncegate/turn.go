package oncegate

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/oncegate/oncegate/clients/go/internal/pb/oncegate/v1"
)

// A Turn is one event, claimed, in its conversation's turn. Its methods may be called by several goroutines.
//
// Handlers that [Run] calls only look at it. A turn of [Gate.Begin] is ended by its holder: by Succeed,
// Reject, Fail or Detach, and by Close in any case.
type Turn struct {
	hold
	delivery Delivery
	request  *pb.BeginTurnRequest
	stream   *stream[*pb.RunTurnResponse]
	send     func(*pb.RunTurnRequest) error

	// Guarded by hold.mu.
	id       string
	team     string
	attempt  int
	detached bool
	outcome  string // of its end, once that is over
}

func newTurn(g *Gate, ctx context.Context, c config, d Delivery) *Turn {
	t := &Turn{delivery: d, request: c.beginRequest(&d)}
	t.init(g, ctx, c)
	t.flow = t
	t.team = t.request.Event.TeamId
	t.ctx = context.WithValue(t.ctx, turnKey{}, t)
	return t
}

type turnKey struct{}

// TurnOf returns the turn whose context this is, or one made from it; nil if there is none.
func TurnOf(ctx context.Context) *Turn {
	turn, _ := ctx.Value(turnKey{}).(*Turn)
	return turn
}

// ID names the turn for [Gate.Adopt] in another process. Keep it secret.
func (t *Turn) ID() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.id
}

// Team is the tenant, if the delivery or its session names it.
func (t *Turn) Team() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.team
}

// Attempt is how many times the event has been claimed, this claim included. 0 if unguarded.
func (t *Turn) Attempt() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.attempt
}

func (t *Turn) startOver() { t.request.RequestId = newRequestID() }

func (t *Turn) open(ctx context.Context, wait time.Duration, until moment) (err error) {
	t.request.Wait = durationpb.New(wait)
	begin := &pb.RunTurnRequest{Step: &pb.RunTurnRequest_Begin{Begin: t.request}}
	t.stream, err = openStream(t.gate.link, ctx, until,
		func(ctx context.Context, conn grpc.ClientConnInterface) (func() (*pb.RunTurnResponse, error), error) {
			stream, err := pb.NewTurnServiceClient(conn).RunTurn(ctx)
			if err != nil {
				return nil, err
			}
			t.send = stream.Send
			// If the server has ended the call, the next read has its status.
			_ = stream.Send(begin)
			return stream.Recv, nil
		})
	return err
}

func (t *Turn) answer(until moment) (granted bool, err error) {
	message, err := t.stream.read(until)
	if err != nil {
		return false, err
	}
	switch news := message.News.(type) {
	case *pb.RunTurnResponse_Granted:
		t.mu.Lock()
		t.id = news.Granted.Turn.TurnId
		t.mu.Unlock()
		t.read(news.Granted.Turn, t.sentAt(), t.config.grace())
		return true, nil
	case *pb.RunTurnResponse_Queued:
		t.config.queued(news.Queued)
	case *pb.RunTurnResponse_Duplicate:
		return false, &NotGrantedError{
			Answer: Answer{
				Kind:    Duplicate,
				Outcome: outcomeName(news.Duplicate.Event.GetOutcome()),
				Detail:  news.Duplicate.Event.GetDetail(),
			},
			result: stored{news.Duplicate.Result, news.Duplicate.ResultType, t.config.codec},
		}
	case *pb.RunTurnResponse_GaveUp:
		event := news.GaveUp.Event
		return false, &NotGrantedError{Answer: Answer{
			Kind: GaveUp, Attempt: int(event.GetAttempt()), Detail: event.GetDetail(),
		}}
	case *pb.RunTurnResponse_InProgress:
		return false, &NotGrantedError{Answer: Answer{
			Kind:       InProgress,
			Holder:     news.InProgress.Holder,
			Attempt:    int(news.InProgress.Attempt),
			RetryAfter: news.InProgress.RetryAfter.AsDuration(),
		}}
	case *pb.RunTurnResponse_Busy:
		return false, busy(news.Busy)
	}
	return false, nil
}

func busy(held *pb.LeaseHeld) error {
	return &NotGrantedError{Answer: Answer{
		Kind:        Busy,
		Holder:      held.Holder,
		QueueLength: int(held.QueueLength),
		RetryAfter:  held.RetryAfter.AsDuration(),
	}}
}

func (c *config) queued(queued *pb.LeaseQueued) {
	if c.hooks.OnQueued != nil {
		c.hooks.OnQueued(int(queued.Position))
	}
}

// outcomeName is the name without its prefix; empty for a mark.
func outcomeName(outcome pb.TurnOutcome) string {
	if outcome == pb.TurnOutcome_TURN_OUTCOME_UNSPECIFIED {
		return ""
	}
	return outcome.String()[len("TURN_OUTCOME_"):]
}

// makeSure renews a grant that was long on its way, before the body runs.
func (t *Turn) makeSure(ctx context.Context) error {
	if t.left() > 0 {
		return nil
	}
	return t.carryOn(ctx)
}

// adopt carries on a turn that another process began.
func (t *Turn) adopt(ctx context.Context, id string) error {
	t.id = id
	if err := t.carryOn(ctx); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refused {
		return ErrClosed
	}
	t.held = true
	return nil
}

func (t *Turn) news(until moment) (finished bool, err error) {
	message, err := t.stream.read(until)
	if err != nil {
		return false, err
	}
	switch news := message.News.(type) {
	case *pb.RunTurnResponse_Renewed:
		t.read(news.Renewed.Turn, t.sentAt(), t.config.grace())
	case *pb.RunTurnResponse_Waiting:
		t.setWaiters(news.Waiting)
	case *pb.RunTurnResponse_Finished:
		return true, nil
	}
	return false, nil
}

func (h *hold) setWaiters(waiting *pb.SessionWaiting) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiters = int(waiting.Waiters)
}

func (t *Turn) renew(ctx context.Context, until moment) error {
	ttl := durationpb.New(t.config.ttl)
	request := &pb.RenewTurnRequest{TurnId: t.ID(), ClaimTtl: ttl, LeaseTtl: ttl}
	response, sent, err := callUntil(t.gate.link, ctx, until-shortest, t.renewTimeout(),
		func(ctx context.Context, conn grpc.ClientConnInterface) (*pb.RenewTurnResponse, error) {
			return pb.NewTurnServiceClient(conn).RenewTurn(ctx, request)
		})
	if err == nil {
		t.read(response.Turn, sent, 0)
	}
	return err
}

// read takes over what the server says of the turn.
func (t *Turn) read(turn *pb.Turn, sent moment, grace time.Duration) {
	remaining, elapsed := turn.GetRemaining().AsDuration(), turn.GetElapsed().AsDuration()
	t.mu.Lock()
	t.attempt = int(turn.GetAttempt())
	if lease := turn.GetLease(); lease != nil {
		t.team, t.fence = lease.TeamId, lease.FencingToken
		remaining = min(remaining, lease.Remaining.AsDuration())
		elapsed = min(elapsed, lease.Elapsed.AsDuration())
	}
	t.mu.Unlock()
	t.trust(remaining, elapsed, sent, grace)
}
