package oncegate

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/oncegate/oncegate/clients/go/internal/pb/oncegate/v1"
)

// releaseEffort is for a release.
const releaseEffort = 5 * time.Second

// A Lease is a conversation, held. Its methods may be called by several goroutines.
type Lease struct {
	hold
	request *pb.HoldSessionLeaseRequest
	stream  *stream[*pb.HoldSessionLeaseResponse]
	lease   *pb.SessionLease
}

func newLease(g *Gate, ctx context.Context, c config, session Session) *Lease {
	l := &Lease{request: c.holdRequest(session)}
	l.init(g, ctx, c)
	l.flow, l.isLease = l, true
	return l
}

// Team is the tenant.
func (l *Lease) Team() string { return l.lease.TeamId }

// Session is the session's canonical id.
func (l *Lease) Session() string { return l.lease.SessionId }

// Epic is the work that the session is bound to; empty: none.
func (l *Lease) Epic() string { return l.lease.EpicId }

// Release ends the lease, and waits for the server's answer; if there is none within 5 s, the session is free
// when the TTL ends. It returns a [LostError] if the lease was lost, and does nothing if it has ended.
func (l *Lease) Release() error {
	if !l.finish("") {
		if reason := l.LostReason(); reason != "" {
			return l.lost(reason, nil)
		}
		return nil
	}
	l.gate.track(func() { l.giveBack("") })
	l.cancel(nil)
	l.gate.forget(&l.hold)
	return nil
}

// Close releases the lease: for defer.
func (l *Lease) Close() { _ = l.Release() }

func (l *Lease) startOver() { l.request.RequestId = newRequestID() }

func (l *Lease) open(ctx context.Context, wait time.Duration, until moment) (err error) {
	l.request.Wait = durationpb.New(wait)
	l.stream, err = openStream(l.gate.link, ctx, until,
		func(ctx context.Context, conn grpc.ClientConnInterface) (func() (*pb.HoldSessionLeaseResponse, error), error) {
			stream, err := pb.NewIdempotencyServiceClient(conn).HoldSessionLease(ctx, l.request)
			if err != nil {
				return nil, err
			}
			return stream.Recv, nil
		})
	return err
}

func (l *Lease) answer(until moment) (granted bool, err error) {
	message, err := l.stream.read(until)
	if err != nil {
		return false, err
	}
	switch news := message.News.(type) {
	case *pb.HoldSessionLeaseResponse_Granted:
		l.lease = news.Granted.Lease
		l.mu.Lock()
		l.fence = l.lease.FencingToken
		l.mu.Unlock()
		return true, nil
	case *pb.HoldSessionLeaseResponse_Queued:
		l.config.queued(news.Queued)
	case *pb.HoldSessionLeaseResponse_Held:
		return false, busy(news.Held)
	}
	return false, nil
}

// makeSure renews once beside the stream: from then on the lease outlives the stream.
func (l *Lease) makeSure(ctx context.Context) error {
	l.read(l.lease, l.sentAt())
	return l.confirm(ctx)
}

func (l *Lease) news(until moment) (finished bool, err error) {
	message, err := l.stream.read(until)
	if err != nil {
		return false, err
	}
	switch news := message.News.(type) {
	case *pb.HoldSessionLeaseResponse_Renewed:
		l.read(news.Renewed.Lease, l.sentAt())
	case *pb.HoldSessionLeaseResponse_Waiting:
		l.setWaiters(news.Waiting)
	}
	return false, nil
}

func (l *Lease) renew(ctx context.Context, until moment) error {
	request := &pb.RenewSessionLeaseRequest{
		Session: l.request.Session, LeaseId: l.lease.LeaseId, Ttl: durationpb.New(l.config.ttl),
	}
	response, sent, err := callUntil(l.gate.link, ctx, until-shortest, l.renewTimeout(),
		func(ctx context.Context, conn grpc.ClientConnInterface) (*pb.RenewSessionLeaseResponse, error) {
			return pb.NewIdempotencyServiceClient(conn).RenewSessionLease(ctx, request)
		})
	if err == nil {
		l.read(response.Lease, sent)
	}
	return err
}

func (l *Lease) read(lease *pb.SessionLease, sent moment) {
	l.trust(lease.GetRemaining().AsDuration(), lease.GetElapsed().AsDuration(), sent, 0)
}

func (l *Lease) giveBack(string) {
	defer l.breakStream()
	request := &pb.ReleaseSessionLeaseRequest{Session: l.request.Session, LeaseId: l.lease.LeaseId}
	_, _, err := callUntil(l.gate.link, l.gate.ctx, now()+releaseEffort, callTimeout,
		func(ctx context.Context, conn grpc.ClientConnInterface) (*pb.ReleaseSessionLeaseResponse, error) {
			return pb.NewIdempotencyServiceClient(conn).ReleaseSessionLease(ctx, request)
		})
	if err != nil {
		l.config.log.Warn("the release of a lease failed; the server frees it when its TTL ends", "error", err)
	}
}
