/** The path of the server's binary for this platform. Throws if no package has one. */
export declare function binaryPath(): string;
