/** Bolt for Java: every handler in its conversation's turn. */
@NullMarked
package io.oncegate.bolt;

import org.jspecify.annotations.NullMarked;
