//! The least role that may call each method.

use crate::auth::Role;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Anybody: probes of load balancers and of kubelet have no credentials.
    Anonymous,
    /// A caller with this role or a higher one.
    Least(Role),
}

impl Access {
    /// Who may call what no service has: it says which methods there are.
    pub(super) const UNKNOWN: Self = Self::Least(Role::Reader);

    /// Who may call `method` of `service`; none if that is not decided. A server does not start
    /// with such a method.
    pub(super) fn to(service: &str, method: &str) -> Option<Self> {
        let least = match service {
            "grpc.health.v1.Health" => return Some(Self::Anonymous),
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection" => {
                Role::Reader
            }
            "oncegate.v1.ServerService" => match method {
                "GetServerInfo" => Role::Reader,
                _ => return None,
            },
            "oncegate.v1.IdempotencyService" => match method {
                "IsProcessed" | "CheckSessionLease" => Role::Reader,
                "MarkProcessed"
                | "BatchMarkProcessed"
                | "AcquireSessionLease"
                | "HoldSessionLease"
                | "RenewSessionLease"
                | "ReleaseSessionLease" => Role::Bot,
                // With `older_than`, it forgets everything.
                "Cleanup" => Role::Admin,
                _ => return None,
            },
            "oncegate.v1.TurnService" => match method {
                "BeginTurn" | "RenewTurn" | "FinishTurn" | "RunTurn" => Role::Bot,
                _ => return None,
            },
            "oncegate.v1.AdminService" => match method {
                "GetSession" | "ListSessions" | "ListEvents" | "GetStats" => Role::Reader,
                "BindEpic" | "ForceReleaseSessionLease" | "CloseSession" | "ForgetEvent" => {
                    Role::Admin
                }
                _ => return None,
            },
            _ => return None,
        };
        Some(Self::Least(least))
    }

    /// Whether a caller with `role` may call it.
    pub(super) fn allows(self, role: Role) -> bool {
        match self {
            Self::Anonymous => true,
            Self::Least(least) => role >= least,
        }
    }
}
