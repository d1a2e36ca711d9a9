package oncegatetest

import (
	"context"
	"time"

	"google.golang.org/grpc"

	pb "github.com/oncegate/oncegate/clients/go/internal/pb/oncegate/v1"
	"github.com/oncegate/oncegate/clients/go/oncegate"
)

// A RunningTurn is in progress.
type RunningTurn struct {
	Event, Holder string
	Attempt       int
}

// Turns are those in progress: of one tenant, or of all if team is empty.
func (s *Server) Turns(team string) []RunningTurn {
	s.t.Helper()
	turns := []RunningTurn{}
	request := &pb.ListEventsRequest{TeamId: team, State: pb.EventState_EVENT_STATE_IN_PROGRESS}
	for {
		page := answer(s, s.admin.ListEvents, request)
		for _, event := range page.Events {
			turns = append(turns, RunningTurn{event.EventId, event.Holder, int(event.Attempt)})
		}
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			return turns
		}
	}
}

// Waiting is how many callers queue for a session of this tenant, or of all.
func (s *Server) Waiting(team string) int {
	s.t.Helper()
	return int(answer(s, s.admin.GetStats, &pb.GetStatsRequest{TeamId: team}).Waiters)
}

// Lose takes a held session from its holder, as an operator does by force.
func (s *Server) Lose(session oncegate.Session) {
	s.t.Helper()
	name := session.ID
	if name == "" {
		name = session.Team + ":" + session.Channel + ":" + session.Thread
	}
	isHeld := false
	request := &pb.ListSessionsRequest{TeamId: session.Team, PageSize: 250}
	for {
		page := answer(s, s.admin.ListSessions, request)
		for _, found := range page.Sessions {
			if found.SessionId != name || found.State != pb.SessionState_SESSION_STATE_HELD {
				continue
			}
			isHeld = true
			answer(s, s.admin.ForceReleaseSessionLease, &pb.ForceReleaseSessionLeaseRequest{
				Session: &pb.SessionKey{
					TeamId:   found.TeamId,
					Key:      &pb.SessionKey_SessionId{SessionId: found.SessionId},
					Consumer: found.Consumer,
				},
				Actor:  "test",
				Reason: "lose",
			})
		}
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			break
		}
	}
	if !isHeld {
		s.t.Fatalf("no session %s of %s is held", name, session.Team)
	}
}

func answer[Request, Response any](
	s *Server, call func(context.Context, Request, ...grpc.CallOption) (Response, error), request Request,
) Response {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	response, err := call(ctx, request, grpc.WaitForReady(true))
	if err != nil {
		s.t.Fatal(err)
	}
	return response
}
