package oncegate

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/oncegate/oncegate/clients/go/internal/pb/oncegate/v1"
)

// Unavailability says what happens to a turn while the server is unavailable.
type Unavailability string

// What happens after the patience.
const (
	// Raise returns ErrUnavailable. The default: where the sender redelivers, a refusal costs only delay.
	Raise Unavailability = "raise"
	// RunUnguarded runs the handler without a turn: its Held is false.
	RunUnguarded Unavailability = "run"
	// Drop is the outcome Dropped: the event is not handled.
	Drop Unavailability = "drop"
)

// Hooks are what a program may observe, such as for metrics. They must not block. Unset ones are not called.
type Hooks struct {
	// OnBegin: a turn was granted.
	OnBegin func(Delivery)
	// OnQueued: a turn or lease waits in the queue; 1 is next.
	OnQueued func(position int)
	// OnLost: a turn or lease was lost.
	OnLost func(reason string)
	// OnEnd: a turn ended: SUCCEEDED, FAILED, REJECTED, LOST or UNKNOWN.
	OnEnd func(outcome string)
}

type (
	// A GateOption is an option of [New].
	GateOption interface{ ofGate(*config) }
	// A TurnOption is an option of one turn.
	TurnOption interface{ ofTurn(*config) }
	// A LeaseOption is an option of one lease.
	LeaseOption interface{ ofLease(*config) }
	// A GateTurnOption is an option of a gate, which a turn may change for itself.
	GateTurnOption interface {
		GateOption
		TurnOption
	}
	// A HoldOption is an option of a turn or lease.
	HoldOption interface {
		TurnOption
		LeaseOption
	}
	// An AnyOption is an option of a gate, which a turn or lease may change for itself.
	AnyOption interface {
		GateOption
		HoldOption
	}
)

type (
	gateOption     func(*config)
	gateTurnOption func(*config)
	holdOption     func(*config)
	turnOption     func(*config)
	anyOption      func(*config)
)

func (o gateOption) ofGate(c *config)     { o(c) }
func (o gateTurnOption) ofGate(c *config) { o(c) }
func (o gateTurnOption) ofTurn(c *config) { o(c) }
func (o holdOption) ofTurn(c *config)     { o(c) }
func (o holdOption) ofLease(c *config)    { o(c) }
func (o turnOption) ofTurn(c *config)     { o(c) }
func (o anyOption) ofGate(c *config)      { o(c) }
func (o anyOption) ofTurn(c *config)      { o(c) }
func (o anyOption) ofLease(c *config)     { o(c) }

// WithServer sets the server: HOST:PORT, https://HOST:PORT, dns:///NAME:PORT or unix:/path. Default: the
// environment's ONCEGATE_SERVER, else 127.0.0.1:7411.
func WithServer(address string) GateOption {
	return gateOption(func(c *config) { c.access.server = &address })
}

// WithConsumer sets the application that handles the events, such as a bot's name. Each consumer handles an
// event once. Default: one that all share.
func WithConsumer(name string) GateOption { return gateOption(func(c *config) { c.consumer = name }) }

// WithSharedSessions lets all consumers take turns in a conversation. Default: each has its own.
func WithSharedSessions() GateOption { return gateOption(func(c *config) { c.shareSessions = true }) }

// WithHolder sets the name that others see while this process holds something.
func WithHolder(name string) GateOption { return gateOption(func(c *config) { c.holder = name }) }

// WithGrace sets how long a turn stays with a process whose stream broke. Default: half the TTL, at least 5 s.
func WithGrace(grace time.Duration) GateOption {
	return gateOption(func(c *config) { c.askedGrace = &grace })
}

// WithHooks sets what to observe.
func WithHooks(hooks Hooks) GateOption { return gateOption(func(c *config) { c.hooks = hooks }) }

// WithLogger sets the logger. Default: [slog.Default].
func WithLogger(logger *slog.Logger) GateOption {
	return gateOption(func(c *config) { c.log = logger })
}

// TTL sets how long a turn or lease runs unless it is renewed: how long a conversation stays with a process
// that vanished. 1 s to 15 min; default 45 s.
func TTL(ttl time.Duration) AnyOption { return anyOption(func(c *config) { c.ttl = ttl }) }

// Patience sets how long to try while the server is unavailable or overloaded. Default 10 s.
func Patience(patience time.Duration) AnyOption {
	return anyOption(func(c *config) { c.patience = patience })
}

// OnUnavailable sets what happens to a turn after the patience. Default [Raise].
func OnUnavailable(then Unavailability) GateTurnOption {
	return gateTurnOption(func(c *config) { c.onUnavailable = then })
}

// MaxAttempts sets after how many failed attempts an event is given up. 1 to 100; default 5.
func MaxAttempts(attempts int) GateTurnOption {
	return gateTurnOption(func(c *config) { c.maxAttempts = attempts })
}

// ResultCodec sets how results are stored. Default [JSON].
func ResultCodec(codec Codec) GateTurnOption {
	return gateTurnOption(func(c *config) { c.codec = codec })
}

// Wait sets how long to queue while the conversation is busy. 0 to 10 min; default 0.
func Wait(wait time.Duration) HoldOption { return holdOption(func(c *config) { c.wait = wait }) }

// Epic binds the session to the work that it is for, such as an issue key.
func Epic(id string) HoldOption { return holdOption(func(c *config) { c.epic = id }) }

// Labels are shown with the lease. At most 8.
func Labels(labels map[string]string) HoldOption {
	return holdOption(func(c *config) { c.labels = labels })
}

// EventTTL sets how long the event stays processed, instead of the delivery's TTL. For [Gate.Adopt], which
// has no delivery.
func EventTTL(ttl time.Duration) TurnOption { return turnOption(func(c *config) { c.eventTTL = ttl }) }

// A config is the options of a gate, or of one turn or lease: a copy of its gate's, with its own.
type config struct {
	consumer      string
	shareSessions bool
	holder        string
	hooks         Hooks
	log           *slog.Logger
	access        accessOptions

	ttl           time.Duration
	askedGrace    *time.Duration
	patience      time.Duration
	onUnavailable Unavailability
	maxAttempts   int
	codec         Codec

	wait     time.Duration
	epic     string
	labels   map[string]string
	eventTTL time.Duration
}

func newConfig(options []GateOption) (config, error) {
	c := config{
		ttl:           45 * time.Second,
		patience:      10 * time.Second,
		onUnavailable: Raise,
		maxAttempts:   5,
		codec:         JSON{},
		log:           slog.Default(),
	}
	for _, option := range options {
		option.ofGate(&c)
	}
	c.holder = orElse(c.holder, holderName(c.consumer))
	return c, c.check()
}

func holderName(consumer string) string {
	host, _ := os.Hostname() // empty if there is none
	return fmt.Sprintf("%s:%s:%d", orElse(consumer, filepath.Base(os.Args[0])), host, os.Getpid())
}

func (c config) forTurn(options []TurnOption) (config, error) {
	for _, option := range options {
		option.ofTurn(&c)
	}
	return c, c.check()
}

func (c config) forLease(options []LeaseOption) config {
	for _, option := range options {
		option.ofLease(&c)
	}
	return c
}

// check refuses a grace of which the margin leaves nothing.
func (c *config) check() error {
	if c.grace() <= c.margin() {
		return invalid("grace", "a grace of %v is too short; use more than %v", c.grace(), c.margin())
	}
	return nil
}

// margin is taken off the end of a turn or lease, for clocks and scheduling.
func (c *config) margin() time.Duration { return min(time.Second, c.ttl/10) }

func (c *config) grace() time.Duration {
	grace := max(5*time.Second, c.ttl/2)
	if c.askedGrace != nil {
		grace = *c.askedGrace
	}
	return min(c.ttl, grace)
}

// sessionConsumer: consumers that share sessions name none.
func (c *config) sessionConsumer(consumer string) string {
	if c.shareSessions {
		return ""
	}
	return consumer
}

func newRequestID() string { return rand.Text() }

func (c *config) beginRequest(d *Delivery) *pb.BeginTurnRequest {
	event := d.eventKey(c.consumer)
	return &pb.BeginTurnRequest{
		Event:         event,
		Session:       d.sessionKey(c.sessionConsumer(event.Consumer)),
		Holder:        c.holder,
		RequestId:     newRequestID(),
		ClaimTtl:      durationpb.New(c.ttl),
		LeaseTtl:      durationpb.New(c.ttl),
		Grace:         durationpb.New(c.grace()),
		EpicId:        c.epic,
		MaxAttempts:   int32(c.maxAttempts),
		Labels:        c.labels,
		PayloadDigest: d.Digest,
	}
}

func (c *config) holdRequest(session Session) *pb.HoldSessionLeaseRequest {
	return &pb.HoldSessionLeaseRequest{
		Session:   session.key(c.sessionConsumer(c.consumer)),
		Holder:    c.holder,
		RequestId: newRequestID(),
		Ttl:       durationpb.New(c.ttl),
		EpicId:    c.epic,
		Labels:    c.labels,
	}
}

func (c *config) markRequest(d *Delivery) *pb.MarkProcessedRequest {
	return &pb.MarkProcessedRequest{
		Event:         d.eventKey(c.consumer),
		Ttl:           optionalDuration(d.TTL),
		RequestId:     newRequestID(),
		PayloadDigest: d.Digest,
	}
}

func optionalDuration(span time.Duration) *durationpb.Duration {
	if span == 0 {
		return nil
	}
	return durationpb.New(span)
}
