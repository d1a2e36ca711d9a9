/**
 * The client library of oncegate: each event handled once, each conversation by one run at a time.
 *
 * <p>{@link io.oncegate.Gate} is the client. The words are those of all client libraries.
 */
@NullMarked
package io.oncegate;

import org.jspecify.annotations.NullMarked;
