package oncegate

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

func TestAConnectionThatIsStillBeingMade(t *testing.T) {
	withoutEnvironment(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing before there is a server
	if err != nil {
		t.Fatal(err)
	}
	gate, err := New(WithServer(listener.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gate.Close)
	var used grpc.ClientConnInterface
	call := func(method string, timeout time.Duration) (codes.Code, grpc.ClientConnInterface) {
		_, err := call(gate.link, t.Context(), timeout,
			func(ctx context.Context, conn grpc.ClientConnInterface) (*emptypb.Empty, error) {
				used = conn
				answer := &emptypb.Empty{}
				return answer, conn.Invoke(ctx, method, answer, answer, grpc.WaitForReady(true))
			})
		var failed *failure
		if err == nil || !errors.As(err, &failed) {
			t.Fatalf("%s: %v", method, err)
		}
		return failed.code, used
	}
	code, first := call("/test/Unknown", shortest)
	if code != codes.DeadlineExceeded {
		t.Fatalf("without a server: %v", code)
	}
	silent := func(_ any, stream grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(stream); method == "/test/Silent" {
			<-t.Context().Done()
		}
		return status.Error(codes.NotFound, "no such method")
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(silent))
	served := make(chan error)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-served })
	if code, second := call("/test/Unknown", callTimeout); code != codes.NotFound || second != first {
		t.Errorf("%v; another connection: %v", code, second != first)
	}
	if code, _ := call("/test/Silent", shortest); code != codes.DeadlineExceeded {
		t.Errorf("of a silent server: %v", code)
	}
	if _, third := call("/test/Unknown", callTimeout); third == first {
		t.Error("a connection that was silent is in use")
	}
}
