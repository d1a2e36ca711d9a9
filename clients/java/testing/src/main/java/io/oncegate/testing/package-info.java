/** The real server of oncegate, for tests with JUnit 5. */
@NullMarked
package io.oncegate.testing;

import org.jspecify.annotations.NullMarked;
