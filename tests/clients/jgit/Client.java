import java.io.File;
import java.util.List;
import org.eclipse.jgit.api.FetchCommand;
import org.eclipse.jgit.api.Git;
import org.eclipse.jgit.lib.Constants;
import org.eclipse.jgit.lib.StoredConfig;
import org.eclipse.jgit.util.FS;
import org.eclipse.jgit.util.SystemReader;

/** Clones and fetches with JGit; ../README.md has the command line. */
public final class Client {
	private static String option(List<String> args, String name) {
		int at = args.indexOf("--" + name);
		return at < 0 ? null : args.get(at + 1);
	}

	public static void main(String[] words) {
		List<String> args = List.of(words);
		try {
			if (args.contains("--deepen")) {
				System.exit(2);
			}
			// JGit asks the user's settings for the protocol, also before there is a repository.
			String protocol = option(args, "protocol");
			if (protocol != null) {
				StoredConfig user = SystemReader.getInstance().getUserConfig();
				user.setString("protocol", null, "version", protocol);
			}
			if (args.get(0).equals("fetch")) {
				fetch(args);
			} else {
				make(args);
			}
		} catch (Exception e) {
			for (Throwable t = e; t != null; t = t.getCause()) {
				System.err.println("jgit: " + t);
			}
			System.exit(1);
		}
	}

	private static void make(List<String> args) throws Exception {
		boolean mirror = args.get(0).equals("mirror");
		var command = Git.cloneRepository().setURI(args.get(1)).setDirectory(new File(args.get(2)));
		command.setBare(mirror).setMirror(mirror);
		if (option(args, "depth") != null) {
			command.setDepth(Integer.parseInt(option(args, "depth")));
		}
		if (option(args, "branch") != null) {
			String branch = Constants.R_HEADS + option(args, "branch");
			command.setBranch(branch).setBranchesToClone(List.of(branch));
		}
		command.call().close();
	}

	private static void fetch(List<String> args) throws Exception {
		try (Git git = Git.open(new File(args.get(1)), FS.DETECTED)) {
			FetchCommand command = git.fetch().setRemote("origin").setRemoveDeletedRefs(true);
			if (option(args, "depth") != null) {
				command.setDepth(Integer.parseInt(option(args, "depth")));
			}
			if (args.contains("--unshallow")) {
				command.setUnshallow(true);
			}
			command.call();
		}
	}
}
