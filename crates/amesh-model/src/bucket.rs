//! Token buckets (`type.v3.TokenBucket`), shared by all workers.

use crate::batch::Value;
use crate::filter::{HttpFilter, LocalRateLimit};
use crate::listener::{ChainAction, Listener, RouteSpecifier, Scope, ScopeRoutes};
use crate::route::RouteTable;
use rkyv::{Archive, Deserialize, Serialize};

/// A bucket that holds so many tokens and is filled again all the time.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TokenBucket {
    /// What it holds at most, and at first; 0: nothing ever.
    pub max_tokens: u32,
    /// Tokens for each interval, at least 1.
    pub tokens_per_fill: u32,
    /// The interval in ms, at least 50.
    pub fill_interval: u64,
    /// Where it stands in its resource: routes that inherit it share it.
    pub place: String,
    /// Its cell, which holds how full it is. Given by the writer.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub cell: u32,
}

impl Value {
    /// Whether [`Value::buckets`] calls back at all.
    pub fn has_buckets(&self) -> bool {
        match self {
            Value::RouteTable(table) => of_table(table),
            Value::Listener(listener) => chains(listener).any(|chain| match &chain.action {
                ChainAction::Http(hcm) => {
                    let of_filter = |f: &HttpFilter| matches!(f, HttpFilter::LocalRateLimit(l) if l.bucket.is_some());
                    let of_scope = |s: &Scope| matches!(&s.routes, ScopeRoutes::Inline(table) if of_table(table));
                    let inline = match &hcm.routes {
                        RouteSpecifier::Rds(_) => false,
                        RouteSpecifier::Inline(table) => of_table(table),
                        RouteSpecifier::Scoped(scoped) => scoped.scopes.iter().any(of_scope),
                    };
                    inline || hcm.filters.iter().any(of_filter)
                }
                _ => false,
            }),
            _ => false,
        }
    }

    /// Calls `f` with each bucket of a resource; one that is inherited comes once for each that inherits it.
    ///
    /// # Errors
    /// The first of `f`.
    pub fn buckets<E>(&mut self, f: &mut impl FnMut(&mut TokenBucket) -> Result<(), E>) -> Result<(), E> {
        match self {
            Value::RouteTable(table) => each_of_table(table, f),
            Value::Listener(listener) => {
                let chains = listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain);
                for chain in chains {
                    let ChainAction::Http(hcm) = &mut chain.action else { continue };
                    for filter in &mut hcm.filters {
                        if let HttpFilter::LocalRateLimit(LocalRateLimit { bucket: Some(bucket), .. }) = filter {
                            f(bucket)?;
                        }
                    }
                    match &mut hcm.routes {
                        RouteSpecifier::Rds(_) => {}
                        RouteSpecifier::Inline(table) => each_of_table(table, f)?,
                        RouteSpecifier::Scoped(scoped) => {
                            for scope in &mut scoped.scopes {
                                if let ScopeRoutes::Inline(table) = &mut scope.routes {
                                    each_of_table(table, f)?;
                                }
                            }
                        }
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn chains(listener: &Listener) -> impl Iterator<Item = &crate::listener::FilterChain> {
    listener.filter_chains.iter().chain(&listener.default_filter_chain)
}

fn of_table(table: &RouteTable) -> bool {
    let mut routes = table.virtual_hosts.iter().flat_map(|host| &host.routes);
    routes.any(|route| route.rate_limit.as_ref().is_some_and(|limit| limit.bucket.is_some()))
}

fn each_of_table<E>(table: &mut RouteTable, f: &mut impl FnMut(&mut TokenBucket) -> Result<(), E>) -> Result<(), E> {
    let routes = table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes);
    routes.filter_map(|route| route.rate_limit.as_mut()?.bucket.as_mut()).try_for_each(f)
}
