package oncegate

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/oncegate/oncegate/clients/go/internal/pb/oncegate/v1"
)

const (
	maxItems = 1000
	maxBytes = 1024 * 1024
	// itemOverhead is the most that a batch adds to an item's own bytes.
	itemOverhead = 8
)

// A MarkItem is the answer for one delivery.
type MarkItem struct {
	Delivery Delivery
	// First: this mark is the first; handle the event.
	First bool
	// EventID is the event's id as stored.
	EventID string
	// Err says why this delivery alone could not be marked. Only from [Gate.MarkAll].
	Err error
}

// Seen is what the server knows of an event.
type Seen struct {
	// State is NOT_SEEN, IN_PROGRESS or PROCESSED.
	State string
	// EventID is the event's id as stored.
	EventID string
	// Outcome is SUCCEEDED, REJECTED or GAVE_UP; empty for a mark, and unless PROCESSED.
	Outcome string
	Detail  string
	// Holder is the run that handles it; empty unless IN_PROGRESS.
	Holder  string
	Attempt int

	result stored
}

// Result stores what the run returned that handled the event in what into points to. It leaves that as it
// is if there is no result.
func (s *Seen) Result(into any) error { return s.result.decode(into) }

// Mark marks an event as processed, at most once: a crash afterwards loses it. Its errors are those of
// [Gate.Begin].
func (g *Gate) Mark(ctx context.Context, d Delivery) (MarkItem, error) {
	request := g.config.markRequest(&d)
	response, err := patiently(g, ctx,
		func(ctx context.Context, conn grpc.ClientConnInterface) (*pb.MarkProcessedResponse, error) {
			return pb.NewIdempotencyServiceClient(conn).MarkProcessed(ctx, request)
		})
	return MarkItem{Delivery: d, First: response.GetFirst(), EventID: response.GetEvent().GetEventId()}, err
}

// MarkAll marks any number of events, and yields the answers in their order. A delivery that cannot be
// marked has an Err of its own; an error in its place ends the sequence.
func (g *Gate) MarkAll(ctx context.Context, deliveries iter.Seq[Delivery]) iter.Seq2[MarkItem, error] {
	return func(yield func(MarkItem, error) bool) {
		var b batch
		flush := func() bool {
			items, err := b.mark(ctx, g)
			b = batch{}
			if err != nil {
				yield(MarkItem{}, err)
				return false
			}
			for _, item := range items {
				if !yield(item, nil) {
					return false
				}
			}
			return true
		}
		for d := range deliveries {
			request := g.config.markRequest(&d)
			if !b.fits(request) && !flush() {
				return
			}
			b.add(d, request)
		}
		flush()
	}
}

// Seen reads the state of an event, and its result. It never writes.
func (g *Gate) Seen(ctx context.Context, d Delivery) (Seen, error) {
	request := &pb.IsProcessedRequest{Event: d.eventKey(g.config.consumer), IncludeResult: true}
	response, err := patiently(g, ctx,
		func(ctx context.Context, conn grpc.ClientConnInterface) (*pb.IsProcessedResponse, error) {
			return pb.NewIdempotencyServiceClient(conn).IsProcessed(ctx, request)
		})
	if err != nil {
		return Seen{}, err
	}
	return Seen{
		State:   response.State.String()[len("EVENT_STATE_"):],
		EventID: response.Event.GetEventId(),
		Outcome: outcomeName(response.Event.GetOutcome()),
		Detail:  response.Event.GetDetail(),
		Holder:  response.Event.GetHolder(),
		Attempt: int(response.Event.GetAttempt()),
		result:  stored{response.Result, response.ResultType, g.config.codec},
	}, nil
}

// patiently repeats a call within the patience.
func patiently[Response any](
	g *Gate, ctx context.Context, do func(context.Context, grpc.ClientConnInterface) (Response, error),
) (response Response, err error) {
	until := now() + max(g.config.patience, 500*time.Millisecond)
	g.track(func() { response, _, err = callUntil(g.link, ctx, until, callTimeout, do) })
	return response, published(err)
}

// A batch is marks that fit into one request.
type batch struct {
	deliveries []Delivery
	requests   []*pb.MarkProcessedRequest
	size       int
}

func sizeOf(request *pb.MarkProcessedRequest) int { return proto.Size(request) + itemOverhead }

func (b *batch) fits(request *pb.MarkProcessedRequest) bool {
	return len(b.requests) == 0 || len(b.requests) < maxItems && b.size+sizeOf(request) <= maxBytes
}

func (b *batch) add(d Delivery, request *pb.MarkProcessedRequest) {
	b.deliveries = append(b.deliveries, d)
	b.requests = append(b.requests, request)
	b.size += sizeOf(request)
}

func (b *batch) mark(ctx context.Context, g *Gate) ([]MarkItem, error) {
	if len(b.requests) == 1 && b.size > maxBytes {
		return []MarkItem{{
			Delivery: b.deliveries[0],
			Err:      invalid("", "the delivery has more than %d bytes", maxBytes),
		}}, nil
	}
	if len(b.requests) == 0 {
		return nil, nil
	}
	request := &pb.BatchMarkProcessedRequest{Requests: b.requests}
	response, err := patiently(g, ctx,
		func(ctx context.Context, conn grpc.ClientConnInterface) (*pb.BatchMarkProcessedResponse, error) {
			return pb.NewIdempotencyServiceClient(conn).BatchMarkProcessed(ctx, request)
		})
	if err != nil {
		return nil, err
	}
	if len(response.Results) != len(b.requests) {
		return nil, (&failure{message: fmt.Sprintf("%d results for %d marks",
			len(response.Results), len(b.requests)), code: codes.DataLoss}).public()
	}
	items := make([]MarkItem, len(b.requests))
	for i, result := range response.Results {
		items[i] = b.item(i, result)
	}
	return items, nil
}

func (b *batch) item(i int, result *pb.BatchMarkProcessedResult) MarkItem {
	item := MarkItem{Delivery: b.deliveries[i]}
	if failed := result.GetError(); failed != nil {
		_, field, found := strings.Cut(failed.Field, "].")
		if !found {
			field = failed.Field
		}
		item.Err = (&failure{
			code: codes.Code(failed.Code), message: failed.Message, reason: failed.Reason, field: field,
		}).public()
		return item
	}
	item.First = result.GetResponse().GetFirst()
	item.EventID = result.GetResponse().GetEvent().GetEventId()
	return item
}
