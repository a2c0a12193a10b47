//! What is refused, in etcd's own words (`rpctypes/error.go`).

use http::StatusCode;
use tonic::Code;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// The mesh is not known yet.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// A write.
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    /// A user is wanted, and none is named.
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    /// Not the user, or not the password.
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    /// No user is wanted.
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    /// A token that was never given, or long ago.
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
    /// A range without a key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// A revision that is past.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// A revision that is to come.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// A watch id that is taken.
    #[error("etcdserver: duplicate watch id provided on the WatchStream")]
    DuplicateWatch,
    /// More watches than a stream may have.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// More than a request may have.
    #[error("etcdserver: request is too large")]
    TooLarge,
    /// What is no request.
    #[error("{0}")]
    Malformed(String),
}

impl EtcdError {
    /// Its gRPC status.
    pub fn code(&self) -> Code {
        match self {
            EtcdError::NoLeader => Code::Unavailable,
            EtcdError::TooManyRequests => Code::ResourceExhausted,
            EtcdError::PermissionDenied => Code::PermissionDenied,
            EtcdError::AuthNotEnabled => Code::FailedPrecondition,
            EtcdError::InvalidAuthToken => Code::Unauthenticated,
            EtcdError::Compacted | EtcdError::FutureRevision => Code::OutOfRange,
            EtcdError::UserEmpty
            | EtcdError::AuthFailed
            | EtcdError::EmptyKey
            | EtcdError::DuplicateWatch
            | EtcdError::TooLarge
            | EtcdError::Malformed(_) => Code::InvalidArgument,
        }
    }

    /// What the gateway makes of it.
    pub fn http(&self) -> StatusCode {
        match self.code() {
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The reason that a watch is ended with.
    pub fn cancel_reason(&self) -> String {
        format!("rpc error: code = {:?} desc = {self}", self.code())
    }
}

impl From<EtcdError> for tonic::Status {
    fn from(e: EtcdError) -> tonic::Status {
        tonic::Status::new(e.code(), e.to_string())
    }
}
